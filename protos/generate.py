"""Generate the Python side of the .proto files: ``python -m protos.generate``.

Writes ``controller/<name>_pb2.py`` and ``.pyi`` for every file, and ``<name>_pb2_grpc.py`` and ``.pyi`` for those
with a service. protoc's own output imports by the .proto's folder and leaves services untyped; both are mended here.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet, MethodDescriptorProto
from grpc_tools import protoc  # type: ignore[import-untyped]

ROOT = Path(__file__).parent
OUTPUT = ROOT.parent / "controller"
WELL_KNOWN = Path(protoc.__file__).parent / "_proto"

_UNTYPED = "# mypy: ignore-errors\n"  # protoc's output is not written for the strict mode that we ask of ours


def generate() -> dict[str, str]:
    """Compile every .proto of this folder.

    Returns
    -------
    dict of str to str
        File name under ``controller/`` → its text.

    Raises
    ------
    RuntimeError
        If protoc refuses a file; its complaint stands on standard error.
    """
    sources = sorted(str(path.relative_to(ROOT)) for path in ROOT.rglob("*.proto"))
    with tempfile.TemporaryDirectory() as folder:
        _compile(sources, Path(folder))
        described = FileDescriptorSet.FromString((Path(folder) / "all.binpb").read_bytes())
        files: dict[str, str] = {}
        for file in described.file:
            files |= _outputs(file, Path(folder))
    return files


def stale(wanted: Mapping[str, str]) -> list[str]:
    """Names of the files under ``controller/`` that differ from ``wanted``, the text that each should have."""
    return sorted(name for name, text in wanted.items() if _read(OUTPUT / name) != text)


def main(argv: Sequence[str] | None = None) -> int:
    """Write the files, or with ``--check`` only say which are stale."""
    parser = argparse.ArgumentParser(prog="python -m protos.generate", description="Generate controller/*_pb2*.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when a file is stale")
    check = parser.parse_args(argv).check
    wanted = generate()
    names = stale(wanted)
    for name in names:
        if not check:
            (OUTPUT / name).write_text(wanted[name])
        print(f"{'stale' if check else 'wrote'} controller/{name}")
    return 1 if check and names else 0


def _compile(sources: Sequence[str], folder: Path) -> None:
    arguments = ["protoc", f"-I{ROOT}", f"-I{WELL_KNOWN}", f"--descriptor_set_out={folder / 'all.binpb'}"]
    arguments += ["--include_source_info", *(f"--{kind}_out={folder}" for kind in ("python", "pyi", "grpc_python"))]
    if protoc.main([*arguments, *sources]) != 0:
        raise RuntimeError("protoc refused " + ", ".join(sources))


def _outputs(file: FileDescriptorProto, folder: Path) -> dict[str, str]:
    name, module = Path(file.name).stem, file.name.removesuffix(".proto")
    files = {f"{name}_pb2.py": _rehome((folder / f"{module}_pb2.py").read_text(), file)}
    files[f"{name}_pb2.pyi"] = _UNTYPED + (folder / f"{module}_pb2.pyi").read_text()
    if file.service:
        code = (folder / f"{module}_pb2_grpc.py").read_text()
        files[f"{name}_pb2_grpc.py"] = _UNTYPED + _rehome(code, file)
        files[f"{name}_pb2_grpc.pyi"] = _service_stub(file, name)
    return files


def _rehome(code: str, file: FileDescriptorProto) -> str:
    package, name = str(Path(file.name).parent).replace("/", "."), Path(file.name).stem
    code = code.replace(f"'{package}.{name}_pb2'", f"'controller.{name}_pb2'")
    return re.sub(rf"^from {re.escape(package)} import ({name}_pb2)", r"from controller import \1", code, flags=re.M)


def _service_stub(file: FileDescriptorProto, name: str) -> str:
    lines = [f'"""Types of the service in {file.name}."""', "", "from collections.abc import AsyncIterator", ""]
    lines += ["import grpc", "import grpc.aio", "", f"from controller import {name}_pb2 as pb", ""]
    for service in file.service:
        lines += [f"class {service.name}Stub:", "    def __init__(self, channel: grpc.Channel) -> None: ..."]
        lines += [_stub_line(method) for method in service.method]
        lines += ["", f"class {service.name}Servicer:"]
        lines += [_servicer_lines(method) for method in service.method]
        lines += ["", f"def add_{service.name}Servicer_to_server("]
        lines += [f"    servicer: {service.name}Servicer, server: grpc.Server | grpc.aio.Server", ") -> None: ...", ""]
    return "\n".join(lines)


def _message(full_name: str) -> str:
    return "pb." + full_name.rpartition(".")[2]


def _stub_line(method: MethodDescriptorProto) -> str:
    kind = "UnaryStream" if method.server_streaming else "UnaryUnary"
    types = f"{_message(method.input_type)}, {_message(method.output_type)}"
    return f"    {method.name}: grpc.{kind}MultiCallable[{types}]"


def _servicer_lines(method: MethodDescriptorProto) -> str:
    sends, answers = _message(method.input_type), _message(method.output_type)
    context = f"grpc.aio.ServicerContext[{sends}, {answers}]"
    start, result = ("def", f"AsyncIterator[{answers}]") if method.server_streaming else ("async def", answers)
    return f"    {start} {method.name}(\n        self, request: {sends}, context: {context}\n    ) -> {result}: ..."


def _read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


if __name__ == "__main__":
    sys.exit(main())
