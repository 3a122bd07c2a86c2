"""Passing on what clients say to the next daemon: exactly once, however often either end dies.

    journal rows ──► passage ──► delivery (one a client) ──► sockets ══ the next daemon
                        ▲             │ acknowledged
                      cursor ◄────────┘

To the next daemon each client is the client that it is here: its uuid, its rank, and the numbers
that it gave its records, which stand in the journal's rows. So whatever is said again, after
whatever was killed, is known there by its number. The cursor passes a row when the next daemon
has acknowledged its last record, hence has it on its own disk.

`units` and `delivery` are also what brings a dead trainer's outbox to another machine (`forward`).
"""
