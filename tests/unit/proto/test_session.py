"""The rules of the conversation, one at a time: each known way to fail has a test by its name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings, strategies as st

from sidestep.proto import (
    Ack,
    Alarm,
    Batch,
    Books,
    Bye,
    ByeAck,
    ClientSession,
    Gap,
    Hello,
    LocalProtocolError,
    Message,
    Nack,
    Part,
    Ping,
    Pong,
    Reject,
    RunSpec,
    ServerSession,
    Tags,
    Welcome,
    encode,
)
from sidestep.proto.limits import MAX_NAME_BYTES, MAX_RECORD_BYTES, MAX_SEQ
from sidestep.proto.session import (
    BACKOFF_LAST_S,
    CLIENT_TRANSITIONS,
    DEAD_S,
    PING_S,
    RETRY_S,
    UNDEFINED_TIMES,
    Append,
    ClientAction,
    ClientEvent,
    ClientState,
    CountGap,
    DefineTags,
    Durable,
    Farewell,
    Notify,
    Reconnect,
    Refused,
    Rejected,
    Send,
    ServerAction,
)
from sidestep.proto.session.client import MAX_ALARMS, MAX_PACE_S

from .pair import CREDIT, PART_BYTES, POISON, STEP_S, Pair
from .strategies import messages

HELLO = Hello(b"u" * 16, 1, 0, RunSpec("run", "/logs"))
WELCOME = Welcome(1, 1, 0, 0, 100, MAX_RECORD_BYTES)
WITHIN_S = 30.0


def client_in(state: ClientState) -> ClientSession:
    """A client that got to `state` at time 0, with nothing to say."""
    client = ClientSession(HELLO, lambda: 0.5)
    if state is ClientState.DISCONNECTED:
        return client
    client.connected(0.0)
    if state is ClientState.GREETING:
        return client
    if state is ClientState.REJECTED:
        client.receive(Reject("version", "too old"), 0.0)
        return client
    client.receive(WELCOME, 0.0)
    if state is ClientState.READY:
        return client
    client.finish(0, 0.0)
    if state is ClientState.CLOSED:
        client.receive(ByeAck(0), 0.0)
    return client


def server(durable_seq: int = 0) -> ServerSession:
    """A daemon's end that was greeted."""
    session = ServerSession(1, durable_seq)
    session.credit = 100
    session.receive(replace(HELLO, connection=1))
    return session


def sends(actions: list[ClientAction] | list[ServerAction]) -> list[Message]:
    return [action.message for action in actions if isinstance(action, Send)]


def pair_ready() -> Pair:
    pair = Pair()
    pair.run(STEP_S)
    assert pair.client.state is ClientState.READY
    return pair


# --- the table of transitions ------------------------------------------------------------------


def lose(pair: Pair) -> None:
    pair.daemon.crash(DEAD_S + 1, fresh_journal=False)
    pair.run(DEAD_S + 2 * STEP_S)


def closing(pair: Pair) -> None:
    """BYE is out, and nobody hears it."""
    pair.trainer.emit()
    pair.run(STEP_S)
    pair.up.loss = 1.0
    pair.trainer.finish()
    assert pair.client.state is ClientState.CLOSING


def lose_when_closing(pair: Pair) -> None:
    closing(pair)
    pair.run(DEAD_S + 2 * STEP_S)


def restart_when_closing(pair: Pair) -> None:
    closing(pair)
    pair.daemon.crash(0.0, fresh_journal=False)
    pair.up.loss = 0.0
    pair.run(RETRY_S + 2 * STEP_S)


def say(reject: Reject) -> Callable[[Pair], None]:
    def to(pair: Pair) -> None:
        pair.down.send(reject, pair.now)
        pair.run(STEP_S)

    return to


def restart(pair: Pair) -> None:
    pair.daemon.crash(0.0, fresh_journal=False)
    pair.trainer.emit()
    pair.run(STEP_S)


def finish(pair: Pair) -> None:
    pair.trainer.emit()
    pair.trainer.finish()
    pair.run(STEP_S)


def go(pair: Pair) -> None:
    pair.run(STEP_S)


def deaf(pair: Pair) -> None:
    pair.up.loss = 1.0
    pair.run(STEP_S)


def both(*steps: Callable[[Pair], None]) -> Callable[[Pair], None]:
    def play(pair: Pair) -> None:
        for step in steps:
            step(pair)

    return play


S, E = ClientState, ClientEvent
FULL = say(Reject("full", "too many clients"))
SCRIPTS: dict[tuple[ClientState, ClientEvent], Callable[[Pair], None]] = {
    (S.DISCONNECTED, E.CONNECTED): go,
    (S.GREETING, E.WELCOMED): go,
    (S.GREETING, E.LOST): both(deaf, lose),
    (S.GREETING, E.REFUSED): both(deaf, FULL),
    (S.READY, E.UNKNOWN): both(go, restart),
    (S.READY, E.LOST): both(go, lose),
    (S.READY, E.REFUSED): both(go, FULL),
    (S.READY, E.FINISH): both(go, finish),
    (S.CLOSING, E.UNKNOWN): both(go, restart_when_closing),
    (S.CLOSING, E.LOST): both(go, lose_when_closing),
    (S.CLOSING, E.REFUSED): both(go, closing, FULL),
    (S.CLOSING, E.BYE_ACKED): both(go, finish),
}


def test_each_transition_has_its_script() -> None:
    assert SCRIPTS.keys() == CLIENT_TRANSITIONS.keys()


@pytest.mark.parametrize("transition", SCRIPTS, ids=lambda t: f"{t[0].value}, {t[1].value}")
def test_each_transition_is_taken_and_leads_out(
    transition: tuple[ClientState, ClientEvent],
) -> None:
    pair = Pair()
    SCRIPTS[transition](pair)
    assert transition in pair.trainer.session.transitions
    if transition[1] is E.REFUSED:
        assert pair.client.state is S.REJECTED
        assert pair.trainer.rejected == Rejected("full", "too many clients")
    else:
        pair.settle(WITHIN_S)
        pair.check_settled()


def test_no_state_is_without_a_way_out() -> None:
    ends = {S.CLOSED, S.REJECTED}
    ways_out = set(ends)
    for _ in CLIENT_TRANSITIONS:
        ways_out |= {s for (s, _), target in CLIENT_TRANSITIONS.items() if target in ways_out}
    assert ways_out == set(S)
    assert set(CLIENT_TRANSITIONS.values()) == set(S)
    assert not ends & {state for state, _ in CLIENT_TRANSITIONS}


@pytest.mark.parametrize("state", [S.CLOSED, S.REJECTED], ids=lambda state: state.value)
def test_what_is_over_says_nothing_more(state: ClientState) -> None:
    """A HELLO after BYE_ACK would make a ghost of the client at the daemon."""
    client = client_in(state)
    assert client.state is state
    actions = [*client.connected(100.0), *client.tick(200.0), *client.finish(0, 200.0)]
    for message in (WELCOME, Nack("unknown_session", ""), Ack(0, 0, 9), Pong(), Reject("x", "y")):
        actions += client.receive(message, 300.0)
    assert actions == []
    assert client.state is state
    assert not client.may_send(0)


# --- greeting ----------------------------------------------------------------------------------


def test_hello_is_repeated_with_a_new_number_until_it_is_answered() -> None:
    client = ClientSession(HELLO, lambda: 0.5)
    numbers = [message.connection for message in sends(client.connected(0.0))]
    for tenth in range(1, int(10 * DEAD_S)):
        numbers += [message.connection for message in sends(client.tick(tenth / 10))]
    assert numbers == [1, 2, 3]  # at 0, 2 and 4 s


def test_the_welcome_says_who_the_daemon_is_and_what_it_takes() -> None:
    client = client_in(S.GREETING)
    assert client.receive(Welcome(77, 1, 3, 1, 50, 1000), 0.0) == [Durable(3, 1)]
    assert (client.daemon_id, client.max_record_bytes, client.next_seq) == (77, 1000, 4)
    assert client.may_send(50)


def test_a_client_may_begin_where_another_daemon_stopped() -> None:
    client = ClientSession(replace(HELLO, connection=3, acked_seq=9, acked_dropped=2), lambda: 0.5)
    assert client.next_seq == 10
    (hello,) = sends(client.connected(0.0))
    assert hello == replace(HELLO, connection=4, acked_seq=9, acked_dropped=2)


def test_hello_says_what_was_acknowledged_so_far() -> None:
    client = client_in(S.READY)
    client.receive(Ack(9, 4, 100), 1.0)
    client.tick(100.0)
    (hello,) = sends(client.connected(101.0))
    assert hello == replace(HELLO, connection=2, acked_seq=9, acked_dropped=4)


def test_silence_ends_a_connection_and_backoff_grows_to_its_bound_and_stays() -> None:
    client = ClientSession(HELLO, lambda: 0.999)
    now, delays = 0.0, []
    for _ in range(40):
        client.connected(now)
        now += DEAD_S
        assert all(isinstance(action, Send) for action in client.tick(now - 0.1))
        (reconnect,) = client.tick(now)
        assert isinstance(reconnect, Reconnect)
        delays.append(reconnect.delay_s)
        assert client.tick(now + 100.0) == []  # it waits for `connected`
    assert delays == sorted(delays)
    assert delays[0] <= 0.1
    assert 0.99 * BACKOFF_LAST_S < delays[-1] <= BACKOFF_LAST_S


def test_backoff_is_jittered_and_begins_anew_after_a_welcome() -> None:
    def delays(jitter: float) -> list[float]:
        client, found, now = ClientSession(HELLO, lambda: jitter), [], 0.0
        for welcomed in (False, False, False, True, False):
            client.connected(now)
            if welcomed:
                client.receive(WELCOME, now)
            now += 10.0
            (reconnect,) = [a for a in client.tick(now) if isinstance(a, Reconnect)]
            found.append(reconnect.delay_s)
        return found

    low, high = delays(0.0), delays(0.999)
    assert all(a < b for a, b in zip(low, high, strict=True))
    assert low[3] == low[0] < low[4] == low[1] < low[2]


def test_any_traffic_is_a_sign_of_life() -> None:
    for message in (Pong(), Ack(0, 0, 1), Nack("busy", ""), Alarm("t", "ok", 0, ""), Ping()):
        client = client_in(S.READY)
        client.receive(message, DEAD_S - 0.1)
        assert client.quiet_s(DEAD_S) == pytest.approx(0.1)
        client.tick(2 * DEAD_S - 0.2)
        assert client.state is S.READY
        client.tick(2 * DEAD_S)
        assert client.state is S.DISCONNECTED


def test_a_ping_with_the_books_each_second() -> None:
    client = client_in(S.READY)
    client.books = Books(5, 2, 1)
    pings = 0
    for tenth in range(1, 31):
        client.receive(Pong(), tenth / 10)
        for message in sends(client.tick(tenth / 10)):
            assert message == Ping(Books(5, 2, 1))
            pings += 1
    assert pings == 3 * PING_S


def test_the_daemon_sets_the_pace_within_bounds() -> None:
    session = server()
    session.pace_ms = 51
    pong, _ = sends(session.receive(Ping()))
    assert pong == Pong(51)
    client = client_in(S.READY)
    assert client.pace_s == 0
    client.receive(pong, 0.0)
    assert client.pace_s == 0.051
    client.receive(Pong(2**62), 0.0)
    assert client.pace_s == MAX_PACE_S
    client.receive(Pong(), 0.0)
    assert client.pace_s == 0


@pytest.mark.parametrize(("low", "high"), [(0, 0), (2, 9)])
def test_a_client_of_another_version_is_rejected_with_a_sentence(low: int, high: int) -> None:
    session = ServerSession(1)
    (reject,) = sends(session.receive(replace(HELLO, min_version=low, max_version=high)))
    assert isinstance(reject, Reject)
    assert reject.code == "version"
    assert f"{low} to {high}" in reject.reason
    assert not session.greeted


def test_two_live_clients_with_one_uuid() -> None:
    session = server()
    other = replace(HELLO, instance=2, connection=0)
    (reject,) = sends(session.receive(other, peer_alive=True))
    assert isinstance(reject, Reject)
    assert reject.code == "duplicate_client"
    assert sends(session.receive(Ping())) == [Pong(), Ack(0, 0, 100)]  # the first is not disturbed
    (welcome,) = sends(session.receive(other, peer_alive=False))
    assert isinstance(welcome, Welcome)


def test_the_same_client_may_greet_again_while_its_old_connection_seems_alive() -> None:
    (welcome,) = sends(server().receive(replace(HELLO, connection=2), peer_alive=True))
    assert isinstance(welcome, Welcome)
    assert welcome.connection == 2


def test_a_late_hello_changes_nothing() -> None:
    session = server()
    for _ in range(2):  # a doubled one is answered twice: the first answer may be lost
        (welcome,) = sends(session.receive(replace(HELLO, connection=5)))
        assert isinstance(welcome, Welcome)
    session.receive(Part(1, 0, 10, b"half "))
    assert session.receive(replace(HELLO, connection=4)) == []
    assert session.reassembling_bytes == 5
    assert session.receive(Bye(0)) != []
    assert session.finished
    assert session.receive(replace(HELLO, connection=5)) == []
    assert session.finished


def test_a_client_whose_bye_ack_was_lost_with_its_connection_may_greet_again() -> None:
    session = server()
    session.receive(Bye(0))
    (welcome,) = sends(session.receive(replace(HELLO, connection=2)))
    assert isinstance(welcome, Welcome)
    assert not session.finished
    assert sends(session.receive(Bye(0))) == [ByeAck(0)]


def test_a_new_session_knows_nothing() -> None:
    session = ServerSession(7)
    assert not session.greeted
    assert not session.finished
    (welcome,) = sends(session.receive(replace(HELLO, connection=3)))
    assert welcome == Welcome(7, 3, 0, 0, 0, MAX_RECORD_BYTES)
    assert sends(ServerSession(7, 5, 2).receive(HELLO)) == [
        Welcome(7, 0, 5, 2, 0, MAX_RECORD_BYTES)
    ]


@pytest.mark.parametrize("message", [Ping(), Batch(1, 1, b"x"), Bye(0), Tags(0, (("a",),)), Pong()])
def test_whoever_was_not_greeted_is_told_to(message: Message) -> None:
    (nack,) = sends(ServerSession(1).receive(message))
    assert isinstance(nack, Nack)
    assert nack.code == "unknown_session"


def test_a_daemon_with_a_fresh_journal_goes_on_after_what_another_acknowledged() -> None:
    session = ServerSession(2)
    (welcome,) = sends(session.receive(replace(HELLO, acked_seq=50, acked_dropped=7)))
    assert isinstance(welcome, Welcome)
    assert (welcome.durable_seq, welcome.dropped) == (50, 7)
    assert session.receive(Batch(51, 52, b"data")) == [Append(51, 52, 0, b"data")]


@pytest.mark.parametrize("late", [51, 80])
def test_an_acknowledgement_of_the_old_daemon_that_comes_after_hello_to_a_fresh_one(
    late: int,
) -> None:
    """The fresh one waits for 51, which is gone: the client must say HELLO again, not wait."""
    for state in (S.READY, S.CLOSING):
        fresh = ServerSession(2)
        client = client_in(S.READY)
        client.receive(Ack(50, 0, 100), 1.0)
        (hello,) = sends(client.receive(Nack("unknown_session", ""), 2.0))
        (welcome,) = sends(fresh.receive(hello))
        client.receive(replace(welcome, credit=100), 2.0)
        client.receive(Ack(late, 3, 100), 2.0)
        if state is S.CLOSING:
            (message,) = sends(client.finish(late, 2.0))
        else:
            message = Batch(late + 1, late + 1, b"data")
        assert client.state is state
        (nack,) = sends(fresh.receive(message))
        (hello,) = sends(client.receive(nack, 3.0))
        assert hello == replace(HELLO, connection=3, acked_seq=late, acked_dropped=3)
        (welcome,) = sends(fresh.receive(hello))
        assert isinstance(welcome, Welcome)
        assert (welcome.durable_seq, welcome.dropped) == (late, 3)


# --- records -----------------------------------------------------------------------------------


def test_records_are_taken_in_order_and_once() -> None:
    session = server()
    assert session.receive(Batch(1, 3, b"abc")) == [Append(1, 3, 0, b"abc")]
    assert session.receive(Batch(2, 5, b"bcde")) == [Append(4, 5, 2, b"bcde")]
    assert sends(session.receive(Batch(1, 5, b"abcde"))) == [Ack(0, 0, 100)]  # not durable yet
    (nack,) = sends(session.receive(Batch(7, 7, b"g")))
    assert nack == Nack("out_of_order", nack.reason, 6)
    assert sends(session.committed()) == [Ack(5, 0, 100)]
    assert sends(session.receive(Batch(1, 5, b"abcde"))) == [Ack(5, 0, 100)]


def test_a_gap_takes_its_numbers_and_is_counted_once() -> None:
    session = server()
    session.receive(Batch(1, 2, b"ab"))
    assert session.receive(Gap(2, 4, "full")) == [CountGap(3, 4, "full")]
    assert session.receive(Gap(2, 5, "full")) == [CountGap(5, 5, "full")]
    assert sends(session.receive(Gap(2, 5, "full"))) == [Ack(0, 0, 100)]
    assert sends(session.receive(Gap(9, 9, "full")))[0] == Nack(
        "out_of_order", "records are missing", 6
    )
    assert sends(session.committed()) == [Ack(5, 3, 100)]


def test_a_transaction_that_fails_is_as_if_nothing_had_come() -> None:
    session = server()
    session.receive(Batch(1, 2, b"ab"))
    session.committed()
    session.receive(Gap(3, 4, "full"))
    session.receive(Batch(5, 6, b"ef"))
    assert (session.taken_seq, session.taken_dropped) == (6, 2)
    session.rolled_back()
    assert (session.taken_seq, session.taken_dropped) == (2, 0)
    assert (session.durable_seq, session.dropped) == (2, 0)
    assert session.receive(Gap(3, 4, "full")) == [CountGap(3, 4, "full")]


def test_a_large_record_comes_in_parts() -> None:
    session = server()
    assert sends(session.receive(Part(1, 0, 5, b"ab"))) == [Ack(0, 0, 100)]
    assert session.reassembling_bytes == 2
    assert session.receive(Part(1, 2, 5, b"cde")) == [Append(1, 1, 0, b"abcde")]
    assert session.reassembling_bytes == 0
    assert sends(session.receive(Part(1, 2, 5, b"cde"))) == [Ack(0, 0, 100)]


@pytest.mark.parametrize(
    "parts",
    [
        [Part(1, 2, 5, b"cde")],
        [Part(1, 0, 5, b"ab"), Part(1, 3, 5, b"de")],
        [Part(1, 0, 5, b"ab"), Part(1, 1, 5, b"bc")],
        [Part(2, 0, 5, b"ab")],
    ],
    ids=["no first", "a hole", "an overlap", "the next record"],
)
def test_a_part_that_is_missing_is_asked_for(parts: list[Part]) -> None:
    session = server()
    *_, last = [session.receive(part) for part in parts]
    (nack,) = sends(last)
    assert isinstance(nack, Nack)
    assert (nack.code, nack.first_seq) == ("out_of_order", 1)
    session.receive(Part(1, 0, 2, b"a"))
    assert session.receive(Part(1, 1, 2, b"b")) == [Append(1, 1, 0, b"ab")]


@pytest.mark.parametrize("dropped", [Gap(1, 1, "full"), Batch(1, 1, b"x")])
def test_parts_of_a_record_that_was_given_up_are_not_taken_for_the_next(dropped: Message) -> None:
    session = server()
    session.receive(Part(1, 0, 5, b"ab"))
    session.receive(dropped)
    assert session.reassembling_bytes == 0
    (nack,) = sends(session.receive(Part(2, 2, 5, b"cde")))
    assert isinstance(nack, Nack)


def test_parts_that_exceed_what_they_announced_are_refused() -> None:
    session = server()
    session.receive(Part(1, 0, 5, b"ab"))
    (nack,) = sends(session.receive(Part(1, 2, 5, b"cdef")))
    assert nack == Nack("refused", nack.reason, 1, 1)
    assert session.reassembling_bytes == 0


@pytest.mark.parametrize("end", ["rolled_back", "disconnected", "hello"])
def test_what_was_half_said_is_forgotten_at_the_end_of_a_connection(end: str) -> None:
    session = server()
    session.receive(Part(1, 0, 5, b"ab"))
    match end:
        case "rolled_back":
            session.rolled_back()
        case "disconnected":
            session.disconnected()
        case _:
            session.receive(replace(HELLO, connection=2))
    assert session.reassembling_bytes == 0
    (nack,) = sends(session.receive(Part(1, 2, 5, b"cde")))
    assert isinstance(nack, Nack)


def test_a_record_that_cannot_be_taken_is_given_up_and_the_others_are_not() -> None:
    pair = pair_ready()
    for value in (0.0, 1.0, POISON, 3.0):
        pair.trainer.emit(value)
    pair.settle(WITHIN_S)
    pair.check_settled()
    assert pair.trainer.refusals == [Refused(3, 3, "poison")]
    assert pair.daemon.journals[0].records.keys() == {1, 2, 4}


def test_the_reason_of_a_refusal_may_be_of_any_length() -> None:
    session = server()
    (append,) = session.receive(Batch(1, 1, b"x"))
    assert isinstance(append, Append)
    (nack,) = sends(session.refuse(append, "é" * MAX_NAME_BYTES))
    encode(nack)
    assert session.taken_seq == 0


def test_a_refusal_of_what_was_not_sent_or_is_acknowledged_is_ignored() -> None:
    client = client_in(S.READY)
    client.sent(1, 4, 40, 0.0)
    client.receive(Ack(2, 0, 100), 0.0)
    for first, last in ((5, 5), (1, 2), (0, 0), (4, 3), (3, MAX_SEQ)):
        assert client.receive(Nack("refused", "", first, last), 0.0) == []
    assert client.next_seq == 5
    assert client.receive(Nack("refused", "x", 1, 3), 0.0) == [Refused(3, 3, "x")]
    assert client.next_seq == 3


def test_tag_sets_that_were_lost_are_defined_again() -> None:
    """A connection broke and healed below: TAGS went down with it, the records did not."""
    pair = pair_ready()
    pair.trainer.emit()
    pair.up.loss = 1.0
    pair.run(STEP_S)  # TAGS and BATCH are lost, and the client believes that TAGS are known
    pair.up.loss = 0.0
    pair.run(WITHIN_S)
    assert pair.daemon.journals[0].records.keys() == {1}
    assert pair.trainer.holes == set()


def test_a_client_that_never_defines_its_tags_has_its_record_refused() -> None:
    session = server()
    answers = []
    for connection in range(2, 2 + UNDEFINED_TIMES + 1):
        (append,) = session.receive(Batch(1, 2, b"ab"))
        assert isinstance(append, Append)
        answers += sends(session.undefined(append))
        assert session.taken_seq == 0
        session.receive(replace(HELLO, connection=connection))
    assert [nack.code for nack in answers] == ["unknown_session"] * UNDEFINED_TIMES + ["refused"]
    assert answers[-1] == Nack("refused", answers[-1].reason, 1, 2)
    session.receive(Gap(1, 2, "refused"))
    (append,) = session.receive(Batch(3, 3, b"c"))
    assert isinstance(append, Append)
    (nack,) = sends(session.undefined(append))
    assert isinstance(nack, Nack)
    assert nack.code == "unknown_session"
    assert not session.greeted


def test_sending_leaves_nothing_out_and_goes_on_after_the_last() -> None:
    client = client_in(S.READY)
    client.sent(1, 4, 40, 0.0)
    client.sent(3, 6, 40, 0.0)  # it overlaps: fine
    for first, last in ((8, 9), (1, 6), (7, 6)):
        with pytest.raises(LocalProtocolError):
            client.sent(first, last, 10, 0.0)
    assert client.next_seq == 7


def test_acknowledgements_may_be_late_or_doubled_but_never_go_back() -> None:
    client = client_in(S.READY)
    client.sent(1, 9, 90, 0.0)
    assert client.receive(Ack(5, 1, 100), 0.0) == [Durable(5, 1)]
    for late in (Ack(5, 1, 100), Ack(3, 0, 100), Ack(0, 0, 100)):
        assert client.receive(late, 0.0) == []
    assert (client.acked_seq, client.acked_dropped, client.next_seq) == (5, 1, 10)


def test_no_more_is_dropped_than_there_was() -> None:
    client = client_in(S.READY)
    client.sent(1, 9, 90, 0.0)
    assert client.receive(Ack(5, 7, 100), 0.0) == [Durable(5, 5)]
    assert (client.acked_seq, client.acked_dropped) == (5, 5)


def test_what_was_adopted_from_the_outbox_is_acknowledged_without_having_been_sent() -> None:
    client = client_in(S.READY)
    client.sent(1, 2, 20, 0.0)
    assert client.receive(Ack(7, 0, 100), 0.0) == [Durable(7, 0)]
    assert client.next_seq == 8
    client.sent(8, 9, 20, 0.0)


def test_an_alarm_reaches_the_user() -> None:
    alarm = Alarm("train/x", "collapsed", 7, "rank 1")
    assert client_in(S.READY).receive(alarm, 0.0) == [Notify(alarm)]


def test_an_alarm_is_said_once_however_often_it_is_sent() -> None:
    client = client_in(S.READY)
    states = [("WARN", 7), ("WARN", 7), ("COLLAPSED", 9), ("COLLAPSED", 9), ("OK", 20), ("OK", 20)]
    said = [a for s in states for a in client.receive(Alarm("t", *s, "why"), 0.0)]
    assert [(a.alarm.state, a.alarm.step) for a in said if isinstance(a, Notify)] == [
        ("WARN", 7),
        ("COLLAPSED", 9),
        ("OK", 20),
    ]
    assert client.receive(Alarm("t", "COLLAPSED", 9, "after a restart, at the same step"), 0.0)


@pytest.mark.parametrize("state", ["OK", "WARMUP"])
def test_what_is_over_before_the_client_came_is_no_news(state: str) -> None:
    assert client_in(S.READY).receive(Alarm("t", state, 7, "over: it was 1"), 0.0) == []


def test_alarms_of_tags_without_number_do_not_fill_the_memory() -> None:
    client = client_in(S.READY)
    for number in range(MAX_ALARMS + 10):
        assert client.receive(Alarm(f"t{number}", "WARN", 1, ""), 0.0)
    assert len(client._alarms) <= MAX_ALARMS


def test_the_books_reach_the_daemon() -> None:
    session = server()
    session.receive(Ping(Books(3, 2, 1)))
    assert session.books == Books(3, 2, 1)
    session.receive(Bye(0, Books(4, 2, 1)))
    assert session.books == Books(4, 2, 1)


# --- credit ------------------------------------------------------------------------------------


def test_no_more_is_under_way_than_the_credit() -> None:
    client = client_in(S.READY)
    assert client.may_send(60)
    client.sent(1, 1, 60, 0.0)
    assert client.may_send(40)
    assert not client.may_send(41)
    client.receive(Ack(1, 0, 100), 0.0)
    assert client.may_send(100)


def test_a_record_larger_than_the_credit_goes_alone() -> None:
    client = client_in(S.READY)
    assert client.may_send(10**6)
    client.sent(1, 1, 10**6, 0.0)
    assert not client.may_send(1)


def test_nothing_is_sent_before_the_welcome_or_without_credit() -> None:
    for state in set(S) - {S.READY}:
        assert not client_in(state).may_send(0)
        assert not client_in(state).tags_wanted
    client = client_in(S.READY)
    assert client.tags_wanted
    client.receive(Ack(0, 0, 0), 0.0)
    assert not client.may_send(0)


def test_a_credit_of_zero_is_renewed() -> None:
    pair = Pair()
    pair.daemon.credit = 0
    for _ in range(50):
        pair.trainer.emit()
    pair.run(DEAD_S + 1)
    assert pair.client.state is S.READY
    assert pair.trainer.sent_seq == 0
    pair.daemon.credit = CREDIT
    pair.run(PING_S + STEP_S)
    assert pair.client.acked_seq == 50


# --- going back --------------------------------------------------------------------------------


def test_what_was_lost_is_sent_again() -> None:
    pair = pair_ready()
    pair.up.loss = 1.0
    pair.trainer.emit()
    pair.run(STEP_S)
    pair.up.loss = 0.0
    pair.run(RETRY_S)
    assert pair.client.acked_seq == 1


def test_the_client_goes_back_at_once_when_told_so() -> None:
    client = client_in(S.READY)
    assert client.receive(Nack("out_of_order", "", 1), 1.0) == []
    client.sent(1, 4, 40, 1.0)
    client.receive(Nack("out_of_order", "", 2), 1.0)  # it speaks of more than we know of
    client.receive(Nack("busy", "", 1), 1.0)
    assert client.next_seq == 5
    client.receive(Nack("out_of_order", "", 1), 1.0)
    assert client.next_seq == 1
    assert client.may_send(100)
    client.sent(1, 4, 40, 1.1)
    client.receive(Nack("out_of_order", "", 1), 1.1)  # an answer to what was sent before
    assert client.next_seq == 5
    client.receive(Nack("out_of_order", "", 1), 1.5)
    assert client.next_seq == 1


def test_the_time_without_progress_begins_with_the_first_message_under_way() -> None:
    client = client_in(S.READY)
    for second in range(100):
        client.receive(Pong(), second)
        client.tick(second)
    client.sent(1, 1, 10, 100.0)
    client.tick(100.0 + RETRY_S - 0.1)
    assert client.next_seq == 2
    client.tick(100.0 + RETRY_S)
    assert client.next_seq == 1


def test_patience_grows_with_each_retry_and_is_lost_with_an_acknowledgement_or_a_welcome() -> None:
    def retries(client: ClientSession, start: float, seconds: int) -> list[int]:
        found = []
        for second in range(seconds):
            client.receive(Pong(), start + second)
            if client.next_seq == client.acked_seq + 1:
                client.sent(client.next_seq, client.next_seq, 10, start + second)
                found.append(second)
            client.tick(start + second)
        return found

    client = client_in(S.READY)
    assert retries(client, 0.0, 32) == [0, 3, 8, 17, 26]  # 2, 4, 8, 8 s, and a tick each
    client.receive(Ack(1, 0, 100), 32.0)
    assert retries(client, 32.0, 5) == [0, 3]
    client.receive(Nack("unknown_session", ""), 40.0)
    client.receive(replace(WELCOME, connection=2), 40.0)
    assert retries(client, 40.0, 5) == [0, 3]


def test_a_message_lost_from_a_window_does_not_start_a_storm() -> None:
    """Each message behind the lost one is refused; the window is sent again once, not for each."""
    pair = pair_ready()
    pair.daemon.credit = 100 * CREDIT
    pair.run(PING_S)
    for _ in range(400):
        pair.trainer.emit()
    pair.run(STEP_S)
    pair.set_link(0.0, 0.0, 0.0, latency_s=0.3)
    for _ in range(400):
        pair.trainer.emit()
    before = pair.up.sent
    pair.up.loss = 1.0
    pair.trainer._send_next()  # the first batch of 50
    pair.up.loss = 0.0
    pair.run(WITHIN_S / 2)
    assert pair.client.acked_seq == 800
    assert pair.up.sent - before < 3 * 50 + WITHIN_S / 2 / PING_S


def test_a_record_that_is_refused_does_not_start_a_storm() -> None:
    pair = pair_ready()
    pair.daemon.credit = 100 * CREDIT
    pair.run(PING_S)
    pair.trainer.emit(POISON)
    for _ in range(400):
        pair.trainer.emit()
    before = pair.up.sent
    pair.run(2 * PING_S)
    assert pair.client.acked_seq == 401
    assert pair.up.sent - before < 3 * 51


def test_refusals_that_are_doubled_do_not_multiply_windows() -> None:
    pair = pair_ready()
    pair.set_credit(100 * CREDIT)
    pair.run(PING_S)
    pair.commit("when told")
    pair.set_link(0.0, 1.0, 0.0)  # each message twice
    for _ in range(8):
        pair.emit(16)
        pair.emit_poison()
    before = pair.up.sent
    pair.run(PING_S)
    assert pair.up.sent - before < 600  # nine windows, twice
    pair.settle(WITHIN_S)
    pair.check_settled()


def test_a_record_that_is_refused_again_later_is_given_up_again() -> None:
    client = client_in(S.READY)
    client.sent(1, 4, 40, 0.0)
    nack = Nack("refused", "x", 3, 3)
    assert client.receive(nack, 1.0) == [Refused(3, 3, "x")]
    client.sent(1, 4, 40, 1.0)
    assert client.receive(nack, 1.1) == []
    assert client.next_seq == 5
    assert client.receive(nack, 2.0) == [Refused(3, 3, "x")]
    assert client.next_seq == 1


def test_a_slow_daemon_is_not_sent_more_and_more_copies() -> None:
    pair = pair_ready()
    pair.daemon.committing = False
    for _ in range(8):
        pair.trainer.emit()
    pair.run(1.0)
    before = pair.up.sent
    pair.run(60.0)
    copies = pair.up.sent - before - 60 / PING_S
    assert copies <= 10  # at 2, 4, 8, and then every 8 s; not 30
    pair.settle(WITHIN_S)
    pair.check_settled()


def test_a_record_that_travels_longer_than_a_dead_peer_is_silent() -> None:
    """64 MiB over a slow network: each part that comes is answered, so nobody is taken for dead."""
    pair = pair_ready()
    pair.trainer.emit()
    nbytes = 100 * PART_BYTES
    pair.up.bytes_per_s = nbytes / (3 * DEAD_S)
    pair.trainer.emit_large(nbytes)
    pair.trainer.emit()
    pair.run(20 * DEAD_S)
    assert pair.client.acked_seq == 3
    assert E.LOST not in {event for _, event in pair.trainer.session.transitions}


# --- goodbye -----------------------------------------------------------------------------------


def test_bye_waits_until_all_is_acknowledged_and_is_repeated_until_it_is_answered() -> None:
    client = client_in(S.READY)
    client.sent(1, 3, 30, 0.0)
    assert client.finish(3, 0.0) == []
    assert client.receive(Ack(2, 0, 100), 0.0) == [Durable(2, 0)]
    assert client.receive(Ack(3, 0, 100), 0.0) == [Durable(3, 0), Send(Bye(3))]
    assert client.tick(RETRY_S - 0.1) == []
    assert client.tick(RETRY_S) == [Send(Bye(3))]
    client.receive(ByeAck(2), RETRY_S)
    assert client.state is S.CLOSING
    client.receive(ByeAck(3), RETRY_S)
    assert client.state is S.CLOSED


def test_bye_is_said_when_the_daemon_has_more_than_was_said_to_be_last() -> None:
    client = client_in(S.READY)
    client.receive(Ack(9, 0, 100), 0.0)
    assert client.finish(5, 0.0) == [Send(Bye(5))]
    client.receive(ByeAck(5), 0.0)
    assert client.state is S.CLOSED


def test_bye_is_not_acknowledged_before_the_commit() -> None:
    session = server()
    session.receive(Batch(1, 3, b"abc"))
    (nack,) = sends(session.receive(Bye(3)))
    assert isinstance(nack, Nack)
    assert not session.finished
    session.committed()
    assert session.receive(Bye(3)) == [Send(ByeAck(3)), Farewell()]
    assert session.finished
    assert sends(session.receive(Bye(3))) == [ByeAck(3)]  # the first answer was lost


def test_finishing_twice_is_finishing_once() -> None:
    client = client_in(S.READY)
    assert client.finish(0, 0.0) == [Send(Bye(0))]
    assert client.finish(0, 0.0) == []


def test_finishing_while_nobody_is_there_waits_for_somebody() -> None:
    pair = Pair()
    pair.daemon.crash(20.0, fresh_journal=False)
    pair.trainer.emit()
    pair.trainer.finish()
    pair.run(19.0)
    assert pair.client.state is not S.CLOSED
    pair.settle(WITHIN_S)
    pair.check_settled()


# --- hostile peers -----------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(S), st.lists(messages, min_size=1, max_size=8), st.floats(0.0, 10.0))
def test_no_message_upsets_a_client(
    state: ClientState, received: list[Message], step_s: float
) -> None:
    client, now = client_in(state), 0.0
    for message in received:
        now += step_s
        actions = client.receive(message, now) + client.tick(now)
        for answer in sends(actions):
            encode(answer)
        if any(isinstance(action, Reconnect) for action in actions):
            for answer in sends(client.connected(now)):
                encode(answer)
        if client.may_send(10) and client.next_seq <= MAX_SEQ:
            client.sent(client.next_seq, client.next_seq, 10, now)


@settings(max_examples=200, deadline=None)
@given(st.lists(messages | st.sampled_from(["committed", "rolled_back"]), max_size=12))
def test_no_message_upsets_a_daemon(received: list[Message | str]) -> None:
    session = ServerSession(1)
    for message in received:
        match message:
            case "committed":
                actions = session.committed()
            case "rolled_back":
                session.rolled_back()
                continue
            case _:
                assert not isinstance(message, str)
                actions = session.receive(message)
        for answer in sends(actions):
            encode(answer)
        assert session.durable_seq <= session.taken_seq <= MAX_SEQ
        assert session.dropped <= session.taken_dropped <= session.taken_seq
        assert session.reassembling_bytes <= MAX_RECORD_BYTES


@pytest.mark.parametrize("message", [WELCOME, Ack(1, 0, 0), Pong(), ByeAck(0)])
def test_a_daemons_message_from_a_client_is_refused(message: Message) -> None:
    (nack,) = sends(server().receive(message))
    assert isinstance(nack, Nack)
    assert nack.code == "refused"


def test_tag_sets_are_passed_on() -> None:
    assert server().receive(Tags(3, (("a",), ("b",)))) == [DefineTags(3, (("a",), ("b",)))]


def test_the_largest_numbers_are_answered_with_numbers_that_can_be_said() -> None:
    session = server()
    session.receive(Gap(1, MAX_SEQ, "all"))
    for answer in sends(session.receive(Bye(MAX_SEQ))):
        encode(answer)
    session = ServerSession(1)
    session.receive(replace(HELLO, acked_seq=5, acked_dropped=MAX_SEQ))
    session.receive(Gap(6, 9, "x"))
    for answer in sends(session.committed()):
        encode(answer)
