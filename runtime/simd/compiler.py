"""Kernels ahead of time: Numba front end and lowering, then one LLVM pipeline, for any target.

Numba types a kernel and lowers it to LLVM IR text; nothing of the host touches that text. All the
text of one kernel is linked into one module, optimised once for the target's own machine, and
written as a relocatable object that needs no symbol from outside. The output is the same bytes on
every build.

Only this module (and what kernels import) needs Numba; a start that finds its objects does not.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba.core import cgutils, compiler, types
from numba.core.codegen import Codegen, CodeLibrary
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import cpu_target
from numba.core.runtime.nrt import rtsys

from ...formats.record import Record
from .isa import Target
from .object_file import symbols

_CAN_RAISE = "llmrun_kernel_can_raise"  # survives optimisation only in a kernel that may raise
_LIBC_MEMORY = {"memcpy", "memset", "memmove"}  # LLVM may form these; refused in the object as well


class Kernel(Record):
    """A compiled function: its symbol, Numba signature and Python body."""

    symbol: str
    signature: Any
    function: Callable[..., Any]


class _TextLibrary(CodeLibrary):
    """Collects LLVM text; no optimisation and no execution engine sees it."""

    def __init__(self, codegen: Any, name: str) -> None:
        super().__init__(codegen, name)
        self.texts: list[str] = []
        self.links: list[_TextLibrary] = []

    def add_ir_module(self, module: Any) -> None:
        self._raise_if_finalized()
        self.texts.append(cgutils.normalize_ir_text(str(module)))

    def add_linking_library(self, library: Any) -> None:
        if library is rtsys.library:  # Numba adds its runtime everywhere; kernels use none of it
            return
        if not isinstance(library, _TextLibrary):
            raise TypeError(f"{self.name} calls {library.name}, which is compiled for this process; use @device")
        library._ensure_finalized()
        if library not in self.links:
            self.links.append(library)

    def finalize(self) -> None:
        self._finalized = True

    def all_texts(self, seen: set[int]) -> Iterator[str]:
        if id(self) in seen:
            return
        seen.add(id(self))
        yield from self.texts
        for library in self.links:
            yield from library.all_texts(seen)

    def get_function(self, name: str) -> Any:
        raise AssertionError(f"{name}: nothing is executed at compile time")

    def get_llvm_str(self) -> str:
        return "\n".join(self.texts)

    get_asm_str = get_llvm_str


class _TargetCodegen(Codegen):
    _library_class = _TextLibrary

    def __init__(self, target: Target) -> None:
        self.target = target
        self.machine = llvm.Target.from_triple(target.triple).create_target_machine(
            cpu=target.cpu, features=target.features, opt=3, reloc="pic", codemodel="default"
        )
        self._target_data = self.machine.target_data
        self.data_layout = str(self._target_data)

    def _create_empty_module(self, name: str) -> ir.Module:
        module = ir.Module(cgutils.normalize_ir_text(name))
        module.triple, module.data_layout = self.target.triple, self.data_layout
        return module

    def _add_module(self, module: Any) -> None:
        raise AssertionError(f"{module}: nothing is executed at compile time")

    def set_env(self, name: str, env: Any) -> None:
        pass

    def magic_tuple(self) -> tuple[str, str, str]:
        return self.target.triple, self.target.cpu, self.target.features


def kernel_flags() -> Any:
    """Return Numba's flags for code that allocates nothing, raises nothing and calls nothing."""
    flags: Any = compiler.Flags()
    flags.no_compile = flags.no_cpython_wrapper = flags.no_cfunc_wrapper = True
    flags.enable_pyobject = flags.enable_looplift = flags.nrt = flags.boundscheck = flags.debuginfo = False
    flags.error_model = "numpy"
    return flags


_contexts: dict[str, Any] = {}


def _context(target: Target) -> Any:
    if not _contexts:
        llvm.initialize_all_targets()
        llvm.initialize_all_asmprinters()
        cpu_target.target_context.refresh()
        cpu_target.typing_context.refresh()
    if target.name not in _contexts:
        context = cpu_target.target_context.subtarget(_internal_codegen=_TargetCodegen(target))
        context.cached_internal_func = {}
        context.aot_mode = True
        context.llmrun_target = target  # operations look here for their lowering
        context.llmrun_outlined = set()  # names of functions that LLVM must not inline
        _contexts[target.name] = context
    return _contexts[target.name]


@global_compiler_lock
def _lower(kernel: Kernel, context: Any) -> list[str]:
    """Return the kernel's LLVM text, with a C function of its name around Numba's."""
    library = context.codegen().create_library(kernel.symbol)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = compiler.compile_extra(
            cpu_target.typing_context, context, kernel.function, kernel.signature.args,
            kernel.signature.return_type, kernel_flags(), {}, library=library,
        )  # fmt: skip
    descriptor = result.fndesc
    module = context.codegen()._create_empty_module(kernel.symbol)
    call_conv = context.call_conv
    callee_type = call_conv.get_function_type(descriptor.restype, descriptor.argtypes)
    callee = ir.Function(module, callee_type, descriptor.llvm_func_name)
    is_void = descriptor.restype in (types.void, types.none)
    result_type = ir.VoidType() if is_void else context.get_value_type(descriptor.restype)
    argument_types = [context.get_value_type(a) for a in descriptor.argtypes]
    wrapper = ir.Function(module, ir.FunctionType(result_type, argument_types), kernel.symbol)
    builder = ir.IRBuilder(wrapper.append_basic_block("entry"))
    status, value = call_conv.call_function(builder, callee, descriptor.restype, descriptor.argtypes, wrapper.args)
    with builder.if_then(status.is_error, likely=False):
        trap = ir.FunctionType(ir.VoidType(), [])
        builder.call(cgutils.get_or_insert_function(module, trap, _CAN_RAISE), [])
    if is_void:
        builder.ret_void()
    else:
        builder.ret(value)
    library.texts.append(str(module))
    return list(library.all_texts(set()))


class Lowered(Record):
    """A kernel as LLVM text, and the names of those functions in it that LLVM must not inline."""

    texts: list[str]
    outlined: frozenset[str]


def lower(kernel: Kernel, target: Target) -> Lowered:
    """Return the kernel's LLVM text, the same for all targets with the same ``Target.lowering``."""
    context = _context(target)
    texts = _lower(kernel, context)
    return Lowered(texts, frozenset(context.llmrun_outlined))


def compile_module(kernel: Kernel, target: Target, lowered: Lowered | None = None) -> llvm.ModuleRef:
    """Return the kernel's optimised LLVM module for a target; ``lowered`` saves calling ``lower`` again."""
    codegen = _context(target).codegen()
    lowered = lowered or lower(kernel, target)
    linked: Any = None
    for text in lowered.texts:
        # Before parsing, which gives loads, stores and allocas the alignments of the data layout.
        text = re.sub(r"(?m)^target triple = .*$", f'target triple = "{target.triple}"', text)
        text = re.sub(r"(?m)^target datalayout = .*$", f'target datalayout = "{codegen.data_layout}"', text)
        if not target.is_arm:  # or vectors wider than 16 bytes that find no register lie across cache lines
            text = re.sub(r"(?m)^(define .*\))$", r'\1 "stackrealign"', text)
        module = llvm.parse_assembly(text)
        for function in module.functions:  # a helper may come with several texts: keep one
            if not function.is_declaration and function.name != kernel.symbol:
                function.linkage = "weak_odr"
            if function.name in lowered.outlined and not function.is_declaration:
                function.add_function_attribute("noinline")
        if linked is None:
            linked = module
        else:
            linked.link_in(module)
    # Numba's names count what this process compiled before: number them anew, or the bytes would depend on it.
    for i, function in enumerate(linked.functions):
        if not function.is_declaration and function.name != kernel.symbol:
            function.linkage, function.name = "internal", f"f{i}"
    for i, variable in enumerate(linked.global_variables):
        if not variable.is_declaration:
            variable.linkage, variable.name = "internal", f"v{i}"
    linked.verify()
    options = llvm.create_pipeline_tuning_options(speed_level=3)
    options.loop_vectorization = False  # kernels are vectors already
    options.slp_vectorization = False
    builder = llvm.create_pass_builder(codegen.machine, options)
    builder.getModulePassManager().run(linked, builder)
    return linked


def compile_object(kernel: Kernel, target: Target, lowered: Lowered | None = None) -> bytes:
    """Compile one kernel for one target to a relocatable object; ``lowered`` as in ``compile_module``.

    Raises:
        RuntimeError: the kernel may raise, or needs a symbol that no object may need.
    """
    module = compile_module(kernel, target, lowered)
    declared = {
        g.name
        for g in [*module.functions, *module.global_variables]
        if g.is_declaration and not g.name.startswith("llvm.")
    }
    if declared - _LIBC_MEMORY:
        raise RuntimeError(f"{kernel.symbol} for {target.name}: needs {sorted(declared - _LIBC_MEMORY)}")
    data = bytes(_context(target).codegen().machine.emit_object(module))
    undefined, _ = symbols(data)
    if undefined:  # library calls appear only in instruction selection
        raise RuntimeError(f"{kernel.symbol} for {target.name}: the object needs {sorted(undefined)}")
    return data


def compile_assembly(kernel: Kernel, target: Target) -> str:
    """Return the kernel's assembly for a target (for tests and for reading)."""
    return str(_context(target).codegen().machine.emit_assembly(compile_module(kernel, target)))
