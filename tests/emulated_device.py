"""A GPU that is not there: ``install()`` makes PyTorch believe in "cuda:N" on any machine.

A device tensor wraps a CPU tensor and every operation runs on what it wraps, so numbers are the CPU's. What CUDA
refuses is refused: operations on tensors of two devices, indices on a device for a tensor that is not, a CPU generator
for a device's random numbers, ``numpy()``, pinning what is on a device. What CUDA leaves undefined is made wrong: a
copy to the CPU by ``non_blocking=True`` holds NaN until something waits for it. ``counted()`` tells what a GPU would be
asked: launches, copies each way, and points at which Python waits.

To PyTorch's C++ the device is PrivateUse1, for which a backend may be written in Python; to Python it says "cuda".
"""

import contextlib
import functools
import itertools
import sys
import threading
import types
import warnings
from collections import Counter
from collections.abc import Iterator

import torch
from torch.utils._pytree import tree_iter, tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

NAME = "emulated"  # of PrivateUse1; never seen unless an error of C++ shows it
MEMORY = {"aten::copy_", "aten::_to_copy", "aten::set_"}  # may meet tensors of two devices
INDEXING = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_", "aten::_unsafe_index"}
SCALARS = {"aten::where", "aten::masked_fill", "aten::masked_fill_", "aten::fill_", "aten::fill", "aten::copy"}
WAITS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal", "aten::is_nonzero"}
WAITS |= {"aten::_unique2", "aten::unique_dim", "aten::unique_consecutive", "aten::repeat_interleave", "aten::bincount"}
FREE = {"view", "_unsafe_view", "expand", "t", "transpose", "permute", "select", "slice", "unsqueeze", "squeeze"}
FREE |= {"detach", "alias", "as_strided", "split", "split_with_sizes", "unbind", "diagonal", "unfold", "_reshape_alias"}
FREE |= {"empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided", "empty_permuted", "lift_fresh"}

# What autocast does on CUDA to the operations that image networks are made of; the rest keeps its types.
LOWER = ["conv2d", "linear", "addmm", "baddbmm", "bmm", "mm", "matmul", "einsum", "scaled_dot_product_attention"]
SINGLE = ["softmax.int", "log_softmax.int", "layer_norm", "group_norm", "cdist", "exp", "log", "rsqrt", "sum"]

_count: Counter | None = None
_pinned: set[int] = set()  # addresses of pinned memory, as far as pin_memory() gave it
_pending: list[tuple[int, torch.Tensor, torch.Tensor]] = []  # copies to the CPU under way: (number, target, what comes)
_numbers, _lock = itertools.count(1), threading.RLock()


class EmulatedTensor(torch.Tensor):
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: torch.Tensor, index: int = 0):
        layout = {"strides": inner.stride(), "storage_offset": inner.storage_offset()}
        device = torch.device(NAME, index)
        out = torch.Tensor._make_wrapper_subclass(cls, inner.size(), **layout, dtype=inner.dtype, device=device)
        out.inner, out.index = inner, index
        return out

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
            result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        return _run(func, args, kwargs)

    @property
    def device(self) -> torch.device:
        return torch.device("cuda", self.index)

    is_cuda = property(lambda self: True)

    def get_device(self) -> int:
        return self.index

    def to(self, *args, **kwargs) -> torch.Tensor:
        copy = kwargs.pop("copy", False)
        device, dtype, non_blocking, form = torch._C._nn._parse_to(*args, **kwargs)
        more = {"memory_format": form} if form is not None else {}
        if device is None or (device.type in ("cuda", NAME) and (device.index or 0) == self.index):
            return super().to(dtype or self.dtype, non_blocking, copy, **more)  # the same tensor, where nothing changes
        return super().to(device, dtype or self.dtype, non_blocking, copy, **more)

    def cuda(self, device=None, non_blocking=False, **more) -> torch.Tensor:
        return self.to(torch.device("cuda", 0) if device is None else device, non_blocking=non_blocking, **more)

    def pin_memory(self, device=None):
        raise RuntimeError(f"cannot pin '{self.type()}' only dense CPU tensors can be pinned")

    def numpy(self, *, force: bool = False):
        if not force:
            raise TypeError(
                f"can't convert {self.device} device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host "
                "memory first."
            )
        return self.detach().cpu().resolve_conj().numpy()

    def tolist(self):
        return self.detach().cpu().tolist()

    def __array__(self, *args, **kwargs):
        return self.numpy()

    def __reduce_ex__(self, protocol):
        """As CUDA's: a file says which device its tensor is of, ``map_location`` may say another."""
        _note("pickled", "torch.save")
        parts = self.detach().cpu(), self.dtype, str(self.device), self.requires_grad
        return torch._utils._rebuild_device_tensor_from_cpu_tensor, parts

    def __repr__(self, **kwargs) -> str:
        return f"{self.inner!r} on {self.device}"

    def __tensor_flatten__(self):  # with the next: what nn.Module.to asks of a class of tensors of its own
        return ["inner"], self.index

    @staticmethod
    def __tensor_unflatten__(inner, index, size, stride):
        return EmulatedTensor(inner["inner"], index)


def _note(kind: str, what: str) -> None:
    if _count is None:
        return
    frame, where = sys._getframe(1), "backward or library"
    while frame is not None:
        file = frame.f_code.co_filename
        if "site-packages" not in file and "/lib/python" not in file and file != __file__ and not file.startswith("<"):
            where = "/".join(file.split("/")[-2:]) + f":{frame.f_lineno}"
            break
        frame = frame.f_back
    with _lock:
        _count[kind, what, where] += 1


@contextlib.contextmanager
def counted() -> Iterator[Counter]:
    """Within: how often (kind, operation, line) happened; kinds: launch, wait, to device, to cpu."""
    global _count
    before, _count = _count, Counter()
    try:
        yield _count
    finally:
        _count = before


def total(count: Counter) -> dict[str, int]:
    kinds: Counter = Counter()
    for (kind, _, _), n in count.items():
        kinds[kind] += n
    return dict(kinds)


def _arrive(until: float = float("inf")) -> None:
    """The CPU waits for the device: copies under way are there."""
    with _lock:
        while _pending and _pending[0][0] <= until:
            _, target, value = _pending.pop(0)
            target.view(-1).copy_(value.reshape(-1)) if target.is_contiguous() else target.copy_(value)


def _spoil(like: torch.Tensor) -> torch.Tensor:
    target = torch.empty_like(like)
    return target.fill_(float("nan") if like.is_floating_point() else True if like.dtype == torch.bool else -77 % 128)


def _two_devices(one, other, name: str):
    return RuntimeError(
        f"Expected all tensors to be on the same device, but found at least two devices, {one} and {other}! (in {name})"
    )


def _check(name: str, func, args, kwargs) -> None:
    """Raises what CUDA raises where an operation meets tensors of two devices."""
    tensors = [x for x in tree_iter((args, kwargs)) if isinstance(x, torch.Tensor)]
    if name in INDEXING:
        own, indices, *values = args
        for i in (i for i in indices if i is not None):
            if i.device.type != "cpu" and i.device != own.device:
                raise RuntimeError(
                    f"indices should be either on {own.device} or on the same device as the indexed tensor "
                    f"({own.device}), not {i.device}"
                )
            if i.device.type == "cpu" and own.is_cuda:
                _note("to device", f"{name} by an index on the CPU")
        values = [v for v in values if isinstance(v, torch.Tensor)]
        for v in values:
            if v.device != own.device and (v.dim() or not own.is_cuda):
                raise RuntimeError(f"expected values on {own.device}, got {v.device} (in {name})")
        return
    device = next(x.device for x in tensors if x.is_cuda)
    scalars_too = name in SCALARS or torch.Tag.pointwise in func.tags
    for x in tensors:
        if x.device != device and (x.is_cuda or x.dim() or not scalars_too):
            raise _two_devices(device, x.device, name)
    for argument, x in zip(func._schema.arguments, args, strict=False):
        written = argument.alias_info is not None and argument.alias_info.is_write
        if written and isinstance(x, torch.Tensor) and not x.is_cuda:
            raise _two_devices(device, x.device, name)


def _run(func, args, kwargs):
    name = func._schema.name
    given = {id(x.inner): x for x in tree_iter((args, kwargs)) if isinstance(x, EmulatedTensor)}
    index = next(iter(given.values())).index
    if name in MEMORY:
        return _copy(name, func, args, kwargs, given)
    _check(name, func, args, kwargs)
    generator = kwargs.get("generator")
    if generator is not None and generator.device.type == "cpu":
        raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
    out, inner = kwargs.get("device"), dict(kwargs)
    if out is not None:
        inner["device"] = torch.device("cpu")
        index = out.index or 0
    inner.pop("pin_memory", None)
    masks = name in INDEXING and any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1])
    if name in WAITS or masks:
        _note("wait", name)
        _arrive()
    if name.partition("::")[2] not in FREE:
        _note("launch", name)
    unwrap = lambda x: x.inner if isinstance(x, EmulatedTensor) else x  # noqa: E731
    result = func(*tree_map(unwrap, args), **tree_map(unwrap, inner))
    if out is not None and out.type == "cpu":
        return result

    def wrap(x):
        if not isinstance(x, torch.Tensor):
            return x
        if id(x) not in given:
            with torch.inference_mode(x.is_inference()):  # a view of an inference tensor is one, wherever it is made
                return EmulatedTensor(x, index)
        outer = given[id(x)]
        if (x.size(), x.stride()) != (outer.size(), outer.stride()):  # changed in place, as average pooling does
            with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(torch._C.DispatchKey.Python)):
                torch.as_strided_(outer, x.size(), x.stride(), x.storage_offset())
        return outer

    return tree_map(wrap, result)


def _copy(name: str, func, args, kwargs, given):
    """``_to_copy`` and ``copy_``: from one device to another, or on one."""
    if name == "aten::set_":
        raise NotImplementedError("set_ of an emulated tensor")
    if name == "aten::copy_":
        target, source, *rest = args
        late = bool(rest and rest[0]) or kwargs.get("non_blocking", False)
        if target.is_cuda:
            if not source.is_cuda:
                _to_device(source, late)
            else:
                _note("launch", name)
            target.inner.copy_(source.inner if source.is_cuda else source)
        else:
            _to_cpu(target, source.inner.to(target.dtype).expand(target.shape), late)
        return target
    device, late = kwargs.get("device"), kwargs.get("non_blocking", False)
    plain = {k: v for k, v in kwargs.items() if k not in ("device", "pin_memory", "non_blocking")}
    source = args[0]
    result = func(source.inner, **plain, device=torch.device("cpu"))
    if device is not None and device.type == "cpu":
        if not late:
            _note("to cpu", name)
            _arrive()
            return result
        target = _spoil(result)
        _to_cpu(target, result, late)
        return target
    _note("launch", name)
    return EmulatedTensor(result, source.index if device is None else device.index or 0)


def _to_device(source: torch.Tensor, late: bool) -> None:
    pinned = source.numel() and source.data_ptr() in _pinned
    _note("to device", f"{'pinned' if pinned else 'pageable'}{'' if late and pinned else ', Python waits'}")


def _to_cpu(target: torch.Tensor, value: torch.Tensor, late: bool) -> None:
    _note("to cpu", "late" if late else "Python waits")
    if late:
        with _lock:
            _pending.append((next(_numbers), target, value.clone()))
    else:
        _arrive()
        target.copy_(value)


class _Event:
    def __init__(self, *args, **kwargs):
        self.number = 0

    def record(self, stream=None):
        self.number = next(_numbers)

    def synchronize(self) -> None:
        _arrive(self.number)

    def query(self) -> bool:
        return False

    def wait(self, stream=None) -> None: ...

    def elapsed_time(self, other) -> float:
        return 1.0


class _Stream:
    device = torch.device("cuda", 0)

    def __init__(self, *args, **kwargs): ...

    def record_event(self, event=None) -> _Event:
        event = event or _Event()
        event.record()
        return event

    def synchronize(self) -> None:
        _arrive()

    def wait_stream(self, other) -> None: ...

    def wait_event(self, event) -> None: ...


class _Module(_DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.float16, torch.bfloat16]

    def get_rng_state(self, device=None):
        return torch.random.default_generator.get_state()

    def set_rng_state(self, state, device=None) -> None: ...


def _make(name: str, *args, device=None, generator=None, pin_memory=None, **kwargs):
    """A factory's tensor on the device."""
    if generator is not None and generator.device.type == "cpu":
        raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
    if generator is not None:
        kwargs["generator"] = generator
    base, _, overload = name.removeprefix("aten::").partition(".")
    if base not in FREE:
        _note("launch", name)
    op = getattr(getattr(torch.ops.aten, base), overload or "default")
    device = torch.device("cuda", 0) if device is None else device
    return EmulatedTensor(op(*args, **kwargs, device=torch.device("cpu")), device.index or 0)


def _copy_from(source: torch.Tensor, target: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    """What ``torch.tensor(..., device=)`` copies by: it passes by what Python is asked."""
    if target.is_cuda:
        _to_device(source, non_blocking)
        target.inner.copy_(source)
    else:
        _to_cpu(target, source.inner, False)
    return target


def _factories() -> Iterator[str]:
    """Operations that make a tensor on a device out of none."""
    for name in torch._C._dispatch_get_all_op_names():
        if name.startswith("aten::"):
            arguments = torch._C._get_schema(*name.partition(".")[::2]).arguments
            if any(a.name == "device" for a in arguments) and not any("Tensor" in str(a.type) for a in arguments):
                yield name


def _autocast(name: str, lower: bool):
    """An operation as autocast runs it on CUDA: in the lower precision, or always in float32."""
    base, _, overload = name.partition(".")
    op, key = getattr(getattr(torch.ops.aten, base), overload or "default"), "AutocastPrivateUse1"
    off = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))

    def cast(x):
        if not (isinstance(x, torch.Tensor) and x.is_floating_point() and x.is_cuda and x.dtype != torch.float64):
            return x
        return x.to(torch.get_autocast_dtype(NAME) if lower else torch.float32)

    def kernel(*args, **kwargs):
        with torch._C._ExcludeDispatchKeyGuard(off):
            return op(*tree_map(cast, args), **tree_map(cast, kwargs))

    return name, kernel, key


def _pin(self, device=None):
    if self.device.type != "cpu":
        raise RuntimeError(f"cannot pin '{self.type()}' only dense CPU tensors can be pinned")
    copy = self.clone(memory_format=torch.preserve_format)
    if copy.numel():
        _pinned.add(copy.data_ptr())
    return copy


TESTED = "2.14"  # what is registered here is no public interface: another version may need other names


@functools.cache
def install(devices: int = 1) -> None:
    """From now on, and to the end of the process, ``torch.cuda`` is there."""
    if not torch.__version__.startswith(f"{TESTED}."):
        raise RuntimeError(f"the emulated GPU was made for torch {TESTED}, this is {torch.__version__}")
    _setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
    torch._C._ensureCUDADeviceGuardSet()  # "cuda" without a number asks which device is the current one
    torch.__future__.set_swap_module_params_on_conversion(True)  # in the place of ``parameter.data = moved``, which
    torch.utils.weakref = types.SimpleNamespace(getweakrefs=lambda tensor: [])  # does not mind who else knows of it
    library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of kernels that are there: CUDA's
        for name in _factories():
            for key in ("CUDA", "PrivateUse1"):
                library.impl(name.removeprefix("aten::"), functools.partial(_make, name), key, allow_override=True)
        library.impl("_copy_from", _copy_from, "PrivateUse1")
        for name, lower in [*((n, True) for n in LOWER), *((n, False) for n in SINGLE)]:
            library.impl(*_autocast(name, lower))
    others = torch.library.Library("_", "IMPL", "AutocastPrivateUse1")
    others.fallback(torch.library.fallthrough_kernel)
    install.library = library, others  # which would undo it all if they went
    torch.Tensor.pin_memory = _pin
    torch.Tensor.is_pinned = lambda self, device=None: bool(self.numel() and self.data_ptr() in _pinned)
    cuda = torch.cuda
    cuda._lazy_init = lambda: None
    cuda.is_available = lambda: True
    cuda.device_count = lambda: devices
    cuda.current_device = lambda: 0
    cuda.set_device = lambda index: None
    cuda.mem_get_info = lambda device=None: (1 << 34, 1 << 34)
    cuda.get_device_name = lambda device=None: "an emulated GPU"
    cuda.is_current_stream_capturing = lambda: False
    cuda.is_bf16_supported = lambda including_emulation=True: True
    cuda.synchronize = lambda device=None: _arrive()
    cuda.current_stream = lambda device=None: _Stream()
    cuda.Event, cuda.Stream = _Event, _Stream
    cuda.get_rng_state = lambda device=None: torch.random.default_generator.get_state()
    cuda.set_rng_state = lambda state, device=None: None
    before = torch.autocast.__init__

    def autocast(self, device_type, *args, **kwargs):
        before(self, NAME if device_type == "cuda" else device_type, *args, **kwargs)

    torch.autocast.__init__ = autocast
