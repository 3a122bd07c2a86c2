"""Representations: which rows of a batch are looked at, and what of them travels.

Only additive moments leave the trainer, made by `statistics` where the representation lives. The
daemon merges them and does the linear algebra in float64, because no eigenvalue routine on CUDA
runs without a synchronization.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from .values import (
    Computation,
    EmitContext,
    InvalidValueError,
    Prepared,
    Value,
    as_array,
    dtype_name,
    is_tensor,
)

if TYPE_CHECKING:
    from .statistics import Plan

logger = logging.getLogger("sidestep")

_VERSION: Final = 2
_MIN_ROWS: Final = 2

_RECORD_HEAD_BYTES: Final = 4096
"""More than a record holds beside its arrays: tag, info, shapes."""

_WHAT: Final = "Representation"


class Representation(Value):
    """The representation of one batch; writes the collapse statistics under tags `T_…`.

    Args:
        x: (B, D) or (B, N, D), any float dtype, any device, at least two rows. Everything is
            computed there, in float32, without gradient, whatever autocast and TF32 say. Finite
            values from 1e-9 to 1e7 in size are told exactly; where float32 cannot hold a
            statistic, it is absent.
        paired: the other branch (the target), of the same shape, on the same device.
        max_rows: at most so many of the B·N rows are used: whole images, evenly spaced; of a
            single one, evenly spaced tokens. `_pr_images`, on which alarms stand, looks at one
            token of each image, at so many images at most.
        spectrum_every: the D×D Gram matrices, of which all spectra are made, cross at the first
            observation under a tag, and then at the first one of each so many steps (steps 0 to
            199, 200 to 399, …, so that ranks agree). Not at all where they do not fit into a
            record (D = 1,000 takes 4 MB for each, of up to two, in an outbox of 64 MiB).
        loss: the training loss, raw; a number or a 0-d tensor. For the alarm on a loss that falls
            while the target dies.
        extras: names of optional statistics, each of which is written under `T_<name>`:

            - ``"uniformity"``: ln mean exp(−2‖zᵢ − zⱼ‖²) over pairs of L2-normalised rows (Wang and
              Isola 2020, t = 2); isotropic −4 + 8/D, collapsed 0. At most 2,048 rows.
            - ``"alignment"``: mean ‖x̂ − ŷ‖² of L2-normalised pairs (the same, α = 2); needs
              `paired`.
            - ``"vicreg_variance"``: mean over dimensions of max(0, 1 − √(var + 1e-4)) (Bardes,
              Ponce and LeCun 2022), unbiased variance; ``"vicreg_covariance"``: the sum of the
              squared off-diagonal elements of the unbiased covariance, divided by D.
            - ``"koleo"``: −mean ln(minⱼ ‖zᵢ − zⱼ‖ + 1e-8) over L2-normalised rows (Sablayrolles et
              al. 2019, as DINOv2 writes it). At most 2,048 rows.
            - ``"sigreg"``: the Epps-Pulley statistic against N(0, 1), mean over 256 random
              directions, of x as it is (LeJEPA: Balestriero and LeCun 2025); 17 points in [−5, 5]
              with weight exp(−t²/2), times the number of rows. At most 2,048 rows.
            - ``"lidar"``: LiDAR (Thilak et al. 2024), of `views`; solved by the daemon, δ = 1e-4.
        views: (V, B, D), V ≥ 2 views of each of B ≥ 2 images, for ``"lidar"``.

    Rows with a non-finite element are left out and their non-finite elements counted. On CUDA the
    rows are copied in the current stream and the rest is done in a stream of the lowest priority;
    when 16 are under way already, or a CUDA graph is being captured, the observation is dropped
    and counted. On MPS the copy to the host waits for the device: emit seldom there.

    Raises:
        InvalidValueError: when emitted, for other shapes, an integer, complex or sparse tensor, a
            pair that does not match, an unknown name, or fewer than two rows.
    """

    kind = "moments"
    over_ranks = "always"

    def __init__(
        self,
        x: Any,
        *,
        paired: Any = None,
        max_rows: int = 4096,
        spectrum_every: int = 200,
        loss: Any = None,
        extras: Sequence[str] = (),
        views: Any = None,
    ) -> None:
        self._x = x
        self._paired = paired
        self._max_rows = max_rows
        self._spectrum_every = spectrum_every
        self._loss = loss
        self._extras = (extras,) if isinstance(extras, str) else tuple(extras)
        self._views = views

    def prepare(self, context: EmitContext) -> Prepared:  # noqa: D102
        x = _floats(self._x, _WHAT)
        if x.ndim not in (2, 3) or 0 in x.shape:
            shape = tuple(x.shape)
            raise InvalidValueError(f"{_WHAT} of shape {shape}: expected (B, D) or (B, N, D)")
        if self._max_rows < _MIN_ROWS or self._spectrum_every < 1:
            raise InvalidValueError(f"{_WHAT} needs max_rows >= 2 and spectrum_every >= 1")
        grid = x if x.ndim == 3 else x.unsqueeze(1)
        b, n, d = (int(size) for size in grid.shape)
        if b * n < _MIN_ROWS:
            raise InvalidValueError(f"{_WHAT} of 1 row: a spread needs two or more")
        arrays = {"x": grid}
        if self._paired is not None:
            arrays["y"] = self._pair_of(x)
        loss = self._checked_loss(x)
        if is_tensor(loss):
            arrays["loss"] = loss
        self._check_extras(x, arrays)

        from .statistics import Plan, result_numbers, seed_of

        images, tokens = sizes(b, n, self._max_rows)
        scatter_d = int(arrays["views"].shape[2]) if "views" in arrays else 0
        sizes_of_results = [
            4
            * result_numbers(
                (images, tokens, d),
                Plan(due, extras=self._extras),
                paired="y" in arrays,
                scatter_d=scatter_d,
            )
            for due in (False, True)
        ]
        fits = sizes_of_results[1] + _RECORD_HEAD_BYTES <= context.max_bytes
        due = fits and self._is_due(context)
        if not fits:
            _say_once(context, f"no spectrum of {d} dimensions: its matrices do not fit a record")
        plan = Plan(due, seed_of(context.step), self._extras)
        gather = _Gather(tuple(arrays), images, tokens, min(b, self._max_rows), plan.seed)
        info = {
            "v": _VERSION,
            "d": d,
            "images": images,
            "tokens": tokens,
            "paired": "y" in arrays,
            "due": due,
            "shares": images > 1 and tokens > 1,
            "extras": list(self._extras),
        }
        if scatter_d:
            info["views"] = int(arrays["views"].shape[0])
        computation = Computation(
            gather, _Compute(gather.names, plan, loss), gather.nbytes(arrays), sizes_of_results[due]
        )
        return Prepared(self.kind, info, tuple(arrays.values()), computation)

    def _pair_of(self, x: Any) -> Any:
        y = _floats(self._paired, "paired")
        if tuple(y.shape) != tuple(x.shape) or y.device != x.device:
            raise InvalidValueError(
                f"paired of shape {tuple(y.shape)} on {y.device}: expected the shape and device of "
                f"x, {tuple(x.shape)} on {x.device}"
            )
        return y if y.ndim == 3 else y.unsqueeze(1)

    def _checked_loss(self, x: Any) -> Any:
        """The loss as a tensor on x's device, a float, or None."""
        loss = self._loss
        if loss is None or isinstance(loss, (bool, int, float)):
            return None if loss is None else float(loss)
        if not is_tensor(loss):
            loss = as_array(loss, "loss")
        if getattr(loss, "ndim", 1) != 0 or not dtype_name(loss).startswith(("float", "bfloat")):
            raise InvalidValueError("loss must be a number or a 0-d float tensor")
        if not is_tensor(loss):
            return float(loss)
        if loss.device == x.device:
            return loss.detach()
        if loss.device.type != "cpu":
            raise InvalidValueError(f"loss on {loss.device} and x on {x.device}: expected one")
        return float(loss.detach())

    def _check_extras(self, x: Any, arrays: dict[str, Any]) -> None:
        from .statistics import EXTRAS, PAIRED_EXTRAS

        for name in self._extras:
            if name not in EXTRAS:
                names = ", ".join(sorted(EXTRAS))
                raise InvalidValueError(f"no optional statistic {name!r:.50}: there are {names}")
            if name in PAIRED_EXTRAS and "y" not in arrays:
                raise InvalidValueError(f"{name!r} needs paired")
        if len(set(self._extras)) < len(self._extras):
            raise InvalidValueError("extras names a statistic twice")
        if ("lidar" in self._extras) != (self._views is not None):
            raise InvalidValueError("'lidar' needs views, and views are for 'lidar' alone")
        if self._views is None:
            return
        views = _floats(self._views, "views")
        if views.ndim != 3 or min(views.shape[:2]) < 2 or views.shape[2] < 1:
            shape = tuple(views.shape)
            raise InvalidValueError(f"views of shape {shape}: expected (V, B, D), V and B >= 2")
        if views.device != x.device:
            raise InvalidValueError(f"views on {views.device} and x on {x.device}: expected one")
        arrays["views"] = views

    def _is_due(self, context: EmitContext) -> bool:
        period = context.step // self._spectrum_every
        if context.memory.get("spectrum_period") == period:
            return False
        context.memory["spectrum_period"] = period
        return True


def sizes(b: int, n: int, max_rows: int) -> tuple[int, int]:
    """How many of `b` images and of their `n` tokens are used, for at most `max_rows` rows."""
    images = max(1, min(b, max_rows // n))
    return images, min(n, max_rows)


def evenly(x: Any, count: int, dim: int) -> Any:
    """`count` slices of `x` along `dim`, evenly spaced: a view of it where that is one."""
    import torch

    size = int(x.shape[dim])
    if size % count == 0:
        return x[(slice(None),) * dim + (slice(None, None, size // count),)]
    return x.index_select(dim, torch.arange(count, device=x.device) * size // count)


class _Gather:
    """The rows that are looked at: views where it can be, small selections where not.

    Attributes:
        names: of what it returns.
    """

    def __init__(
        self, arrays: tuple[str, ...], images: int, tokens: int, few: int, seed: int
    ) -> None:
        self._arrays = arrays
        self._images = images
        self._tokens = tokens
        self._few = few
        self._seed = seed
        self.names: tuple[str, ...] = ("tokens", *arrays) if tokens > 1 else arrays

    def nbytes(self, arrays: dict[str, Any]) -> int:
        """Of what it returns."""
        x = arrays["x"]
        d, rows = int(x.shape[2]), self._images * self._tokens
        total = self._few * d * x.element_size() if "tokens" in self.names else 0
        for name, array in arrays.items():
            count = rows * d if name in ("x", "y") else array.numel()
            total += int(count * array.element_size())
        return total

    def __call__(self, arrays: Sequence[Any]) -> Sequence[Any]:
        import torch

        with torch.no_grad():
            given = dict(zip(self._arrays, arrays, strict=True))
            found = [self._tokens_of(given["x"])] if "tokens" in self.names else []
            for name, array in given.items():
                if name in ("x", "y"):
                    array = evenly(evenly(array, self._images, 0), self._tokens, 1)  # noqa: PLW2901
                found.append(array)
            return found

    def _tokens_of(self, x: Any) -> Any:
        """One token an image, its position drawn for each."""
        import torch

        from .statistics import drawn_positions

        b, n = int(x.shape[0]), int(x.shape[1])
        positions = drawn_positions(self._few, n, self._seed, x.device)
        images = torch.arange(self._few, device=x.device) * b // self._few
        return x[images, positions]


class _Compute:
    """The moments of what was gathered, without gradient and autocast."""

    def __init__(self, names: tuple[str, ...], plan: Plan, loss: Any) -> None:
        self._names = names
        self._plan = plan
        self._loss = loss if isinstance(loss, float) else None

    def __call__(self, gathered: Sequence[Any]) -> Sequence[Any]:
        import torch

        from .statistics import moments

        given = dict(zip(self._names, gathered, strict=True))
        device = given["x"].device
        # Autocast would run the products in half precision.
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            if self._loss is not None:
                given["loss"] = torch.full((), self._loss, dtype=torch.float32, device=device)
            return moments(plan=self._plan, **given)


def _floats(value: Any, what: str) -> Any:
    """`value` as a dense tensor of floats."""
    array = as_array(value, what)
    if not dtype_name(array).startswith(("float", "bfloat")):
        raise InvalidValueError(f"{what} of {dtype_name(array)}: expected floats")
    if is_tensor(array):
        if hasattr(array, "to_local"):
            raise InvalidValueError(f"{what} of a DTensor: call .to_local() first")
        return array
    import torch

    # torch warns of an array that cannot be written to.
    return torch.as_tensor(array if array.flags.writeable else array.copy())


def _say_once(context: EmitContext, sentence: str) -> None:
    if not context.memory.get("said"):
        context.memory["said"] = True
        logger.warning("sidestep: %s", sentence)
