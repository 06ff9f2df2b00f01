"""A trace: one recorded episode, decision by decision. Pictures, scan-path measures and reports are made from traces.

Traces are saved in files of three kinds. ``.npz`` files hold everything, and :func:`load` reads them. ``.csv`` and ``.parquet``
files hold one row per decision for other programs, in the columns of :data:`SCHEMA` (``docs/traces.md``).
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hsal_env.errors import ConfigError, DataError
from hsal_env.perception.grid import Grid
from hsal_env.storage.checksums import check_zip
from hsal_env.storage.files import as_path, replacing

_FORMAT = "hsal trace 1"


class Trace(NamedTuple):
    """One episode of N decisions, in order.

    Saliency and remaining labels are those from before the decision. NaN stands for unknown.

    Attributes:
        image: uint8 ``[h_px, w_px]`` or ``[h_px, w_px, 3]``.
        source: where the image comes from: ``"mnist"``, ``"digits"``, ``"house-numbers"``, ``"svhn"`` or ``"custom"``.
        canvas_index: index of the image in its split.
        grid: where the cells lie on the image.
        labels: the true multiset, int64 ``[m]`` in 0..C - 1; their order has no meaning.
        boxes: the boxes of the m objects, int64 ``[m, 4]`` as (row, col, height, width) in px; -1 where unknown.
        num_classes: C.
        glimpses: k, the locations per meta-step.
        terminated: whether the episode came to its end.
        truncated: whether the episode was cut off.
        meta_step: number of the meta-step, int64 ``[N]`` from 0 on.
        phase: int64 ``[N]``; 0: attention, 1..k: a location, k + 1: a label.
        saliency: S_t ``[N, H, W]`` in [0, 1], before the decision.
        mask: M_t of the meta-step ``[N, H, W]``; at phase 0 the mask that this decision placed.
        priority: P_t of the meta-step ``[N, H, W]`` in [0, 1]; at phase 0 the one that follows from the mask that was placed.
        alpha, beta, row, col: the Gaussian mixture of the mask, ``[N, K]`` each, see :class:`hsal_env.functional.Mixture`.
        location: the cell that was chosen, int64 ``[N]``, row-major; -1 at other phases.
        location_px: where on the image it looks, as (row, col) in px, float64 ``[N, 2]``: at the centre of the cell, or at the
            object of the cell where ``places="turned"``. NaN at other phases.
        label: the label that was named, int64 ``[N]``; C: stop; -1 at other phases.
        reward: of the decision ``[N]``.
        remaining: how often each label is still to be named, int64 ``[N, C]``, before the decision.
        log_prob: log-probability of the location or label under the policy ``[N]``, in nats; of attention where it is drawn.
        value: the baseline ``[N]``; at phase 0 that of the upper level, if it has one.
        entropy: of the policy ``[N]``, in nats; at phase 0 that of drawn attention.
        location_probs: probability of every location ``[N, H W]``, at phases 1..k.
        label_probs: probability of every label and of stop ``[N, C + 1]``, at phase k + 1.
        states: recurrent states of the agent after the decision, ``[N, ...]`` by name; empty without an agent.
        saliency_left: S after the last decision ``[H, W]``.
        attended: the cell that attention was drawn about, int64 ``[N]``, row-major; -1 at other phases, and where attention is
            not drawn about a cell.
        class_names: the names of the C labels; () where they have none.
    """

    image: np.ndarray
    source: str
    canvas_index: int
    grid: Grid
    labels: np.ndarray
    boxes: np.ndarray
    num_classes: int
    glimpses: int
    terminated: bool
    truncated: bool
    meta_step: np.ndarray
    phase: np.ndarray
    saliency: np.ndarray
    mask: np.ndarray
    priority: np.ndarray
    alpha: np.ndarray
    beta: np.ndarray
    row: np.ndarray
    col: np.ndarray
    location: np.ndarray
    location_px: np.ndarray
    label: np.ndarray
    reward: np.ndarray
    remaining: np.ndarray
    log_prob: np.ndarray
    value: np.ndarray
    entropy: np.ndarray
    location_probs: np.ndarray
    label_probs: np.ndarray
    states: dict[str, np.ndarray]
    saliency_left: np.ndarray
    attended: np.ndarray
    class_names: tuple[str, ...] = ()

    @property
    def map_size(self) -> tuple[int, int]:
        """(H, W) in cells."""
        return self.saliency_left.shape[0], self.saliency_left.shape[1]

    @property
    def meta_steps(self) -> int:
        """Number of meta-steps that have begun."""
        return int(self.meta_step[-1]) + 1 if len(self.meta_step) else 0

    @property
    def named(self) -> np.ndarray:
        """The labels that were named, in order and without stop, int64."""
        return self.label[(self.label >= 0) & (self.label < self.num_classes)]

    def label_name(self, label: int) -> str:
        """A label as it is shown: the name of its class, else its number; ``"stop"`` for C."""
        if label == self.num_classes:
            return "stop"
        return self.class_names[label] if self.class_names else str(label)

    @property
    def right(self) -> np.ndarray:
        """Which decisions named a remaining label, or stop when no label remained (the multiset rule): bool ``[N]``."""
        left = np.column_stack([self.remaining, self.remaining.sum(axis=1) == 0])
        return (self.label >= 0) & (left[np.arange(len(left)), self.label] > 0)

    @property
    def exact_match(self) -> bool:
        """Whether the multiset of the named labels equals the true one."""
        return sorted(self.named.tolist()) == sorted(self.labels.tolist())


class Column(NamedTuple):
    """One column of the flat files.

    Attributes:
        name: its header.
        dtype: type of a value: ``"int64"``, ``"float32"``, ``"float64"``, ``"string"``, or ``"list<...>"`` of one of them.
        meaning: what it holds, in words, with its unit.
        range: which values occur.
        values: computes its N values in a trace: ``[N]``, or ``[N, n]`` for a list.
    """

    name: str
    dtype: str
    meaning: str
    range: str
    values: Callable[[Trace], Any]


def _field(name: str, dtype: str, meaning: str, within: str) -> Column:
    return Column(name, dtype, meaning, within, lambda trace: _flat(getattr(trace, name)))


def _constant(name: str, dtype: str, meaning: str, within: str) -> Column:
    def values(trace: Trace) -> Any:
        value = np.asarray(getattr(trace, name)).reshape(1, -1)
        rows = np.repeat(value, len(trace.phase), axis=0)
        return rows if dtype.startswith("list") else rows[:, 0]

    return Column(name, dtype, meaning, within, values)


def _flat(values: np.ndarray) -> np.ndarray:
    return values.reshape(len(values), -1) if values.ndim > 1 else values


SCHEMA = (
    _constant("source", "string", "what the pixels are", "mnist, digits, house-numbers, svhn, custom"),
    _constant("canvas_index", "int64", "which canvas of the split", "from 0"),
    Column("decision", "int64", "number of the decision in its episode", "0..N - 1", lambda t: np.arange(len(t.phase))),
    _field("meta_step", "int64", "number of the meta-step", "from 0"),
    _field("phase", "int64", "0: attention; 1..k: a location; k + 1: a label", "0..k + 1"),
    _field("location", "int64", "cell looked at, row-major", "0..H W - 1; -1 at other phases"),
    Column(
        "location_row_px", "float32", "row on the image where it looks, px", "NaN at other phases",
        lambda t: t.location_px[:, 0],
    ),
    Column(
        "location_col_px", "float32", "column on the image where it looks, px", "NaN at other phases",
        lambda t: t.location_px[:, 1],
    ),
    _field("label", "int64", "label named", "0..C - 1, C: stop; -1 at other phases"),
    Column(
        "label_name", "string", "the label in words", "class name or number, stop; empty at other phases",
        lambda t: np.array([t.label_name(label) if label >= 0 else "" for label in t.label.tolist()], "U"),
    ),
    Column(
        "right", "int64", "the label was among the remaining ones, or stop when none was", "0, 1; -1 at other phases",
        lambda t: np.where(t.label < 0, -1, t.right),
    ),
    _field("reward", "float64", "reward of the decision", "P at a location, in [0, 1]; -1, 0 or 1 of a label"),
    _field("attended", "int64", "cell that attention was drawn about, row-major", "0..H W - 1; -1: none"),
    _field(
        "log_prob", "float32", "log-probability of the location or label, or log-density of drawn attention, nats",
        "of a location or label at most 0; NaN: unknown",
    ),
    _field("value", "float32", "baseline", "any; NaN: unknown"),
    _field("entropy", "float32", "entropy of the policy, nats", "of a location or label at least 0; NaN: unknown"),
    _field("remaining", "list<int64>", "how often each label is still to be named", "C numbers from 0"),
    _field("saliency", "list<float32>", "saliency map S that the decision found, row-major", "H W numbers in [0, 1]"),
    _field("mask", "list<float32>", "attention mask M of the meta-step, row-major", "H W numbers from 0"),
    _field("priority", "list<float32>", "priority map P of the meta-step, row-major", "H W numbers in [0, 1]"),
    _field("alpha", "list<float32>", "weights of the mask's Gaussians", "K numbers in [0, 1], sum 1; NaN: unknown"),
    _field("beta", "list<float32>", "their inverse widths, per cell squared", "K numbers above 0; NaN: unknown"),
    _field("row", "list<float32>", "rows of their centres, cells from 1 on", "K numbers; NaN: unknown"),
    _field("col", "list<float32>", "columns of their centres, cells from 1 on", "K numbers; NaN: unknown"),
    _field("location_probs", "list<float32>", "probability of each location", "H W numbers in [0, 1]; NaN: unknown"),
    _field("label_probs", "list<float32>", "probability of each label and stop", "C + 1 numbers in [0, 1]; NaN: unknown"),
    _constant("labels", "list<int64>", "the image's labels", "m numbers in 0..C - 1"),
    _constant("boxes", "list<int64>", "their boxes: row, col, height, width in px of each", "4 m numbers; -1: unknown"),
)  # fmt: skip
"""The columns of the flat files. Before them comes ``episode``, int64, the number of the trace in the file from 0 on."""


def save(traces: Sequence[Trace], path: Path | str) -> None:
    """Write traces to ``path``, completely or not at all.

    Args:
        traces: any number of traces.
        path: a name that ends with ``.npz`` (everything), ``.csv`` or ``.parquet`` (a table of decisions). In a CSV file the
            numbers of a list are separated by spaces.

    Raises:
        ConfigError: another suffix, or Parquet without pyarrow.
        DataError: the file cannot be written; a file that was at ``path`` is still there.

    Example:
        >>> import tempfile
        >>> import agents
        >>> from agents.tracing import record
        >>> from hsal_env.config import EnvConfig
        >>> config = EnvConfig(source="digits", split="test", components=25, update="peak")
        >>> trace = record(agents.load("mnist-multiset").agent, config, index=0)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save([trace], f"{folder}/traces.npz")
        ...     (read,) = load(f"{folder}/traces.npz")
        >>> bool((read.saliency == trace.saliency).all()), read.map_size
        (True, (7, 7))
    """
    path = as_path(path)
    writers = {".npz": _write_npz, ".csv": _write_csv, ".parquet": _write_parquet}
    if path.suffix not in writers:
        raise ConfigError(f"Expected a file named .npz, .csv or .parquet for traces; got {path.name!r}.")
    if path.suffix == ".parquet":
        _pyarrow()
    try:
        with replacing(path) as temporary:
            writers[path.suffix](traces, temporary)
    except OSError as error:
        raise DataError(f"Cannot write {path}: {error}. Free space, or choose another place.") from error


def load(path: Path | str) -> list[Trace]:
    """Read the traces in an ``.npz`` file of :func:`save`. They equal those that were saved, to the bit.

    Raises:
        ConfigError: another suffix.
        DataError: the file is missing, damaged, or of another kind.
    """
    path = as_path(path)
    if path.suffix != ".npz":
        raise ConfigError(
            f"Expected a file named .npz, which holds whole traces; got {path.name!r}. The tables .csv and .parquet are for "
            "other programs: pandas.read_csv, pandas.read_parquet."
        )
    try:
        check_zip(path)
        with np.load(path, allow_pickle=False) as stored:
            if str(stored["format"]) != _FORMAT:
                raise DataError(f"{path}: expected the format {_FORMAT!r}; got {str(stored['format'])!r}.")
            parts: dict[str, dict[str, np.ndarray]] = {}
            for key in stored.files:
                if "/" in key:
                    episode, name = key.split("/", 1)
                    parts.setdefault(episode, {})[name] = stored[key]
            traces = [_rebuilt(parts.pop(str(episode))) for episode in range(int(stored["episodes"]))]
            if parts:
                raise ValueError(f"{len(traces)} episodes are promised, and there are more")
            return traces
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error}.") from error
    except Exception as error:  # of many types: anything may stand in the place of anything
        raise DataError(f"{path} is cut off, damaged, or holds no traces ({error}). Record them again.") from error


_PLAIN: dict[str, Callable[[Any], Any]] = {
    "source": str, "canvas_index": int, "num_classes": int, "glimpses": int, "terminated": bool, "truncated": bool,
    "class_names": lambda value: tuple(value.tolist()),
    "grid": lambda value: Grid(*((float(row), float(col)) for row, col in value)),
}  # fmt: skip


_SHAPES = {
    "labels": ("i", "m"), "boxes": ("i", "m 4"), "meta_step": ("i", "N"), "phase": ("i", "N"),
    "saliency": ("f", "N H W"), "mask": ("f", "N H W"), "priority": ("f", "N H W"), "saliency_left": ("f", "H W"),
    "alpha": ("f", "N K"), "beta": ("f", "N K"), "row": ("f", "N K"), "col": ("f", "N K"),
    "attended": ("i", "N"), "location": ("i", "N"), "location_px": ("f", "N 2"), "label": ("i", "N"),
    "reward": ("f", "N"), "remaining": ("i", "N C"),
    "log_prob": ("f", "N"), "value": ("f", "N"), "entropy": ("f", "N"),
    "location_probs": ("f", "N HW"), "label_probs": ("f", "N C+1"),
}  # fmt: skip
"""The kind of numbers of each array of a trace, and its shape."""


def _rebuilt(part: dict[str, Any]) -> Trace:
    states = {name.removeprefix("states/"): part.pop(name) for name in list(part) if name.startswith("states/")}
    part = {
        "class_names": np.array([]),
        "attended": np.full_like(part["location"], -1),
        **part,
    }  # not in files of version 0.2
    plain = {name: convert(part.pop(name)) for name, convert in _PLAIN.items()}
    part.setdefault(
        "location_px", plain["grid"].centres(part["location"], part["saliency_left"].shape[1])
    )  # nor is this
    trace = Trace(**part, **plain, states=states)
    (rows, columns), classes = trace.map_size, trace.num_classes
    sizes = {"2": 2, "4": 4, "H": rows, "W": columns, "HW": rows * columns, "C": classes, "C+1": classes + 1}
    sizes |= {"N": len(trace.phase), "K": trace.alpha.shape[1], "m": len(trace.labels)}
    for name, (kind, axes) in _SHAPES.items():
        array = getattr(trace, name)
        if array.dtype.kind != kind or array.shape != tuple(sizes[axis] for axis in axes.split()):
            raise ValueError(f"{name} is {array.dtype} of shape {array.shape}")
    for name, array in states.items():
        if array.dtype.kind not in "fiub" or array.shape[:1] != trace.phase.shape:
            raise ValueError(f"the state {name} is {array.dtype} of shape {array.shape}")
    if not all(isinstance(name, str) for name in trace.class_names) or len(trace.class_names) not in (0, classes):
        raise ValueError(f"expected names of {classes} classes, got {len(trace.class_names)}")
    if trace.image.dtype != np.uint8 or trace.image.ndim not in (2, 3) or trace.image.shape[2:] not in ((), (3,)):
        raise ValueError(f"image is {trace.image.dtype} of shape {trace.image.shape}")
    return trace


def _write_npz(traces: Sequence[Trace], path: Path) -> None:
    content = {"format": np.array(_FORMAT), "episodes": np.array(len(traces))}
    for episode, trace in enumerate(traces):
        fields = trace._asdict()
        for name, value in fields.pop("states").items():
            content[f"{episode}/states/{name}"] = value
        content |= {f"{episode}/{name}": np.asarray(value) for name, value in fields.items()}
    with path.open("wb") as file:
        np.savez_compressed(file, **content)  # type: ignore[arg-type]  # its stub takes the names for its own arguments


def _write_csv(traces: Sequence[Trace], path: Path) -> None:
    with path.open("w", newline="") as file:
        out = csv.writer(file, lineterminator="\n")
        out.writerow(["episode", *(column.name for column in SCHEMA)])
        for episode, trace in enumerate(traces):
            cells = [_texts(column.values(trace), column.dtype) for column in SCHEMA]
            out.writerows([episode, *row] for row in zip(*cells, strict=True))


def _texts(values: np.ndarray, dtype: str) -> list[str]:
    kind = dtype.removeprefix("list<").removesuffix(">")
    texts = values.astype(kind if kind != "string" else "U").astype(
        "U"
    )  # the shortest text that reads back as the same number
    return [" ".join(row) for row in texts] if dtype.startswith("list") else texts.tolist()


def _write_parquet(traces: Sequence[Trace], path: Path) -> None:
    pa, parquet = _pyarrow()
    fields = [pa.field("episode", pa.int64(), metadata={"meaning": "number of the trace in the file"})]
    numbers = [np.repeat(np.arange(len(traces)), [len(trace.phase) for trace in traces])]
    columns = [pa.array(numbers[0], pa.int64())]
    for column in SCHEMA:
        kind = column.dtype.removeprefix("list<").removesuffix(">")
        dtype = getattr(pa, kind)()
        dtype = pa.list_(dtype) if column.dtype.startswith("list") else dtype
        fields.append(pa.field(column.name, dtype, metadata={"meaning": column.meaning, "range": column.range}))
        columns.append(pa.array([value for trace in traces for value in column.values(trace).tolist()], dtype))
    parquet.write_table(pa.Table.from_arrays(columns, schema=pa.schema(fields)), path)


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ConfigError(
            f'Parquet files need pyarrow ({error}): pip install "hsal[parquet]", or write .csv.'
        ) from error
    return pyarrow, parquet
