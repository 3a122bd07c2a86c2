"""Moments of a representation, computed where it lives: what collapse statistics are made of.

Only additive moments leave the trainer: the number of rows, their mean, their centred Gram
matrix (when the spectrum is due) and a few cheap statistics. The daemon merges them and does the
linear algebra in float64, because no eigenvalue routine on CUDA runs without a synchronization.
"""

from __future__ import annotations

from typing import Any, Final

from .values import EmitContext, InvalidValueError, Prepared, Value, as_array, dtype_name

_MIN_ROWS: Final = 2


class Representation(Value):
    """The representation of one batch; under tag `T` it writes `T_std T_norm T_rank T_pr`.

    Args:
        x: (B, D) or (B, N, D), any float dtype, any device. Statistics are computed in float32
            on that device, without gradient.
        max_rows: at most so many of the B·N rows are used: images are subsampled first, evenly,
            then tokens.
        spectrum_every: the D×D Gram matrix, from which `_rank` and `_pr` are made, crosses the
            first time, and then once in so many steps; `_std` and `_norm` always cross.

    `_std`: mean over dimensions of the unbiased standard deviation over rows. `_norm`: mean L2
    norm of the rows. `_rank`: RankMe (Garrido et al. 2023). `_pr`: debiased participation ratio
    (Srivastava 2005). See the daemon's `derive` for the formulas.

    Raises:
        InvalidValueError: when emitted, for another rank, an integer or complex dtype, or fewer
            than two rows.
    """

    kind = "moments"

    def __init__(self, x: Any, *, max_rows: int = 4096, spectrum_every: int = 200) -> None:
        self._x = x
        self._max_rows = max_rows
        self._spectrum_every = spectrum_every

    def prepare(self, context: EmitContext) -> Prepared:  # noqa: D102
        x = as_array(self._x, "Representation")
        shape = tuple(int(n) for n in x.shape)
        if not dtype_name(x).startswith(("float", "bfloat")):
            raise InvalidValueError(f"Representation of {dtype_name(x)}: expected floats")
        if len(shape) not in (2, 3) or 0 in shape:
            raise InvalidValueError(
                f"Representation of shape {shape}: expected (B, D) or (B, N, D)"
            )
        if self._max_rows < _MIN_ROWS or self._spectrum_every < 1:
            raise InvalidValueError("Representation needs max_rows >= 2 and spectrum_every >= 1")
        import torch

        with torch.no_grad():
            x = torch.as_tensor(x)
            # Autocast would run the products in half precision.
            with torch.autocast(x.device.type, enabled=False):
                rows, images = subsample(x, self._max_rows)
                if rows.shape[0] < _MIN_ROWS:
                    raise InvalidValueError(
                        f"Representation of {rows.shape[0]} row: a spread needs two or more"
                    )
                last = context.memory.get("spectrum_step")
                due = last is None or abs(context.step - last) >= self._spectrum_every
                arrays = moments(rows.float(), gram=due)
                if due:
                    context.memory["spectrum_step"] = context.step
        info = {"n": int(rows.shape[0]), "images": images, "d": shape[-1]}
        return Prepared(self.kind, info, arrays)


def subsample(x: Any, max_rows: int) -> tuple[Any, int]:
    """Rows of `x`, at most `max_rows`: whole images while they fit, evenly spaced, then tokens.

    Args:
        x: (B, D) or (B, N, D).
        max_rows: the limit.

    Returns:
        (n, D) and the number of images it came from.
    """
    if x.ndim == 2:
        x = x.unsqueeze(1)
    b, n, d = (int(size) for size in x.shape)
    images = max(1, min(b, max_rows // n))
    if images < b:
        # A strided view copies nothing; the stride rounds down so that the last one is inside.
        x = x[:: b // images][:images]
    if images * n > max_rows:
        x = x[:, :: -(-n // max_rows)]
    return x.reshape(-1, d), images


def moments(rows: Any, *, gram: bool) -> tuple[Any, ...]:
    """Mean (D,), cheap statistics (2,) = (std, norm), and centred Gram (D, D) if asked for.

    Centred BEFORE the product: XᵀX − nμμᵀ in float32 loses a small spread beside a large mean. And
    centred twice: the mean itself is rounded to float32, which would be taken for spread.

    Args:
        rows: float32, (n, D), on any device; n ≥ 2.
        gram: whether the Gram matrix is wanted.
    """
    import torch

    mean = rows.mean(dim=0)
    centred = rows - mean
    left = centred.mean(dim=0)
    centred -= left
    mean = mean + left
    variance = centred.square().sum(dim=0) / (rows.shape[0] - 1)
    std = variance.sqrt().mean()
    norm = torch.linalg.vector_norm(rows, dim=1).mean()
    cheap = torch.stack((std, norm))
    return (mean, cheap, centred.T @ centred) if gram else (mean, cheap)
