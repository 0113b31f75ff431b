"""A learned policy as a score: an ONNX model gives every site points. Pure: the same model and world give the same points.

The model has one input, float32 of shape [sites, features] (``metaos.scheduler.features``), and one output, float32 of shape
[sites] or [sites, 1]: 0 to 100 points. It must judge each row by itself, as a reason is given for one site at a time; that is
tried when it is loaded. It earns points beside the other scores and decides nothing alone: filters are not its business.
"""

from __future__ import annotations

import re

import numpy as np

from metaos.resources.snapshot import ClusterInfo, WorkloadInfo
from metaos.scheduler.features import FEATURES, MOST, UNKNOWN, Rows, observe
from metaos.scheduler.scores import Score
from metaos.scheduler.world import Floats, World

#: A larger file is refused: it would not decide within milliseconds.
MOST_BYTES = 64 << 20
_NAME = re.compile(r"[a-z][a-z0-9-]{0,30}")
#: Points by which a row may differ when it is judged among others.
_TOLERANCE = 0.01


class Learned:
    """Measures points by a model. ``about`` names it in errors. Raises ``ValueError`` saying what is wrong and what to do."""

    def __init__(self, model: bytes, about: str) -> None:
        self._model, self._about = model, about
        if len(model) > MOST_BYTES:
            raise ValueError(f"{about}: {len(model)} bytes are more than {MOST_BYTES}: export a smaller model")
        try:
            import onnxruntime  # type: ignore[import-untyped]
        except ImportError:
            raise ValueError(f"{about}: needs onnxruntime: pip install 'nemo-metaos[learning]'") from None
        options = onnxruntime.SessionOptions()
        # One thread: beside the hub's own, and the same sums in the same order.
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4
        try:
            self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # The library's errors have no other type in common.
            first = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ValueError(f"{about}: is no ONNX model that can be run ({first}): export it again") from None
        self._check()

    def __reduce__(self) -> tuple[type[Learned], tuple[bytes, str]]:
        # What is decided in another process is decided by the same model.
        return Learned, (self._model, self._about)

    def __call__(self, workload: WorkloadInfo, cluster: ClusterInfo) -> float | None:
        found = float(self.column(workload, World([cluster]))[0])
        return None if np.isnan(found) else found

    def column(self, workload: WorkloadInfo, world: World) -> Floats:
        """Points everywhere; NaN where the model says so."""
        return self._run(observe(workload, world)) if len(world) else np.zeros(0)

    def _run(self, rows: Rows) -> Floats:
        found = self._session.run(None, {self._session.get_inputs()[0].name: rows})[0]
        return np.asarray(found, np.float64).reshape(len(rows))

    def _check(self) -> None:
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        wanted = f"one input of float32 [sites, {len(FEATURES)}] and one output of float32 [sites] or [sites, 1]"
        said = ", ".join(f"{i.name} {i.type} {i.shape}" for i in (*inputs, *outputs))
        if len(inputs) != 1 or len(outputs) != 1 or inputs[0].type != "tensor(float)" or len(inputs[0].shape) != 2:
            raise ValueError(f"{self._about}: has {said}; it must have {wanted}")
        if inputs[0].shape[1] != len(FEATURES):
            raise ValueError(f"{self._about}: reads {inputs[0].shape[1]} features; there are {len(FEATURES)}: train it anew")
        span = np.linspace(UNKNOWN, MOST, 7 * len(FEATURES), dtype=np.float32)
        rows = span[(np.arange(span.size) * 37) % span.size].reshape(7, len(FEATURES))
        try:
            together = self._run(rows)
            alone = np.concatenate([self._run(row[None, :]) for row in rows])
        except Exception as error:
            raise ValueError(
                f"{self._about}: does not run on several sites and on one ({error}); it must have {wanted}"
            ) from None
        if not np.allclose(together, alone, atol=_TOLERANCE, rtol=0.0, equal_nan=True):
            raise ValueError(f"{self._about}: judges a site by the others beside it: it must judge each row by itself")


def learned(name: str, model: bytes, weight: float) -> Score:
    """A score like the built-in ones. ``weight``: beside theirs (0.5 or 1 each, and up to 10 where an intent asks). Raises
    ``ValueError``."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"score {name!r}: a name has up to 31 of a-z, 0-9 and '-', and begins with a letter")
    if not 0.0 < weight <= 1000.0:
        raise ValueError(f"score {name}: weight {weight:g} must be above 0 and at most 1000")
    return Score(name, "points", Learned(model, f"score {name}"), 0.0, weight, "", True)
