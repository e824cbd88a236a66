"""Each peer's own file format, made from our checkpoint: ONNX, OpenVINO, GGUF. Used by bench_peers.py.

Every maker takes the checkpoint's folder and the folder of converted models, and returns the file that the peer loads.
A file is made once and appears only when it is complete; it is made in another process, so that no engine's
memory shows what its conversion needed. What the peers run is trunk, mean pooling, Dense heads and length 1, as
sentence-transformers has them.
"""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

Maker = Callable[[Path, Path], Path]
MASKED = -1e9  # finite: a padded row whose window holds no token would be NaN with -inf, and NaN * 0 is NaN


def folder_for(checkpoint: Path, work: Path) -> Path:
    """Where a checkpoint's converted models are kept: another one, or one that has changed, gets another folder."""
    weights = (checkpoint / "model.safetensors").stat()
    key = hashlib.sha256(f"{checkpoint} {weights.st_size} {weights.st_mtime_ns}".encode()).hexdigest()[:8]
    return work / f"{checkpoint.name}-{key}"


def bundle(format: str) -> Maker:
    """A maker of our quantised folders, as `gemma-np quantize` writes them."""

    def made(checkpoint: Path, work: Path) -> Path:
        from gemma_np.checkpoint.saving import save
        from gemma_np.opening import open_source

        folder = work / f"gemma_np-{format}"
        if not folder.is_dir():
            save(open_source(checkpoint), folder, format)
        return folder

    return made


def once(make: Callable[[Path, Path, Path], None], folder: str, name: str) -> Maker:
    """A maker that fills `folder` unless it is there: make(checkpoint, work, the folder to fill)."""

    def made(checkpoint: Path, work: Path) -> Path:
        if not (work / folder).is_dir():
            part = work / f"{folder}.part"
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            make(checkpoint, work, part)
            part.rename(work / folder)
        return work / folder / name

    return made


def torch_embedder(checkpoint: Path) -> Any:
    """ids, mask [B, T] -> vectors [B, dim]: a torch module with nothing that depends on the data but its masks."""
    import torch
    from sentence_transformers import SentenceTransformer

    class Embedder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            settings = {"dtype": torch.float32, "attn_implementation": "sdpa"}
            modules = list(SentenceTransformer(str(checkpoint), device="cpu", model_kwargs=settings))
            self.trunk: Any = modules[0].model
            self.heads = torch.nn.ModuleList([module for module in modules if hasattr(module, "linear")])

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            n = torch.arange(input_ids.shape[1])
            near = (n[:, None] - n[None, :]).abs() < self.trunk.config.sliding_window  # transformers: exclusive, 257
            real = attention_mask[:, None, None, :].bool()
            masks = {"full_attention": real & torch.ones_like(near), "sliding_attention": real & near}
            masks = {kind: torch.where(seen, 0.0, MASKED) for kind, seen in masks.items()}
            positions = n[None].expand_as(input_ids)  # a row for each text: ONNX Runtime's RoPE takes no fewer
            out = self.trunk(input_ids=input_ids, attention_mask=masks, position_ids=positions, use_cache=False)
            x = out.last_hidden_state
            weight = attention_mask[:, :, None].to(x.dtype)
            e = (x * weight).sum(1) / weight.sum(1)
            for head in self.heads:
                e = head.activation_function(head.linear(e))
            return torch.nn.functional.normalize(e, dim=-1)

    return Embedder().eval()


def example() -> tuple[Any, Any]:
    import torch

    ids = torch.randint(300, 1000, (2, 20))
    return ids, torch.ones_like(ids)


def export_onnx(checkpoint: Path, work: Path, out: Path) -> None:
    """At opset 23, where attention, RoPE and RMSNorm are one node each.

    With attention taken apart into products and a softmax, ONNX Runtime took as long up to 256 tokens, longer at 2048.
    """
    import torch

    shapes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("tokens")}
    with torch.no_grad():
        program = torch.onnx.export(
            torch_embedder(checkpoint),
            example(),
            dynamo=True,
            opset_version=23,
            input_names=["input_ids", "attention_mask"],
            output_names=["sentence_embedding"],
            dynamic_shapes={"input_ids": shapes, "attention_mask": shapes},
        )
    assert program is not None
    program.save(str(out / "model.onnx"), external_data=True)


def quantize_onnx(checkpoint: Path, work: Path, out: Path) -> None:
    """Weights int8 with a scale per output channel, activations uint8 with a scale per tensor, found at run time."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(
        onnx_float32(checkpoint, work),
        out / "model.onnx",
        op_types_to_quantize=["MatMul", "Gemm"],
        per_channel=True,
        weight_type=QuantType.QInt8,
        use_external_data_format=True,
    )


def convert_openvino(mode: str, **settings: Any) -> Callable[[Path, Path, Path], None]:
    """Through OpenVINO's PyTorch frontend, where attention becomes its fused node; weights compressed with NNCF."""

    def make(checkpoint: Path, work: Path, out: Path) -> None:
        import nncf
        import openvino as ov

        ids, mask = example()
        model = ov.convert_model(torch_embedder(checkpoint), example_input={"input_ids": ids, "attention_mask": mask})
        model = nncf.compress_weights(model, mode=nncf.CompressWeightsMode[mode], **settings)
        ov.save_model(model, out / "model.xml", compress_to_fp16=False)

    return make


def export_gguf(checkpoint: Path, work: Path, out: Path) -> None:
    """As `gemma-np export-gguf` writes it: the bytes of llama.cpp's converter, Dense heads included."""
    from gemma_np.gguf.export import export
    from gemma_np.opening import open_source

    with (out / "model.gguf").open("wb") as file:
        export(open_source(checkpoint), file, "f32")


def quantize_gguf(file_type: str) -> Callable[[Path, Path, Path], None]:
    """llama.cpp's own quantiser with its defaults, which decide the type of each tensor."""

    def make(checkpoint: Path, work: Path, out: Path) -> None:
        import llama_cpp

        params = llama_cpp.llama_model_quantize_default_params()
        params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{file_type}")
        source = gguf_float32(checkpoint, work)
        failed = llama_cpp.llama_model_quantize(str(source).encode(), str(out / "model.gguf").encode(), params)
        if failed:
            raise RuntimeError(f"llama_model_quantize returned {failed}")

    return make


onnx_float32 = once(export_onnx, "onnx-float32", "model.onnx")
onnx_int8 = once(quantize_onnx, "onnx-int8", "model.onnx")
openvino_int8 = once(convert_openvino("INT8_ASYM"), "openvino-int8", "model.xml")
openvino_int4 = once(convert_openvino("INT4_SYM", group_size=32, ratio=1.0), "openvino-int4", "model.xml")
gguf_float32 = once(export_gguf, "gguf-f32", "model.gguf")
gguf_q8_0 = once(quantize_gguf("Q8_0"), "gguf-q8_0", "model.gguf")
gguf_q4_0 = once(quantize_gguf("Q4_0"), "gguf-q4_0", "model.gguf")
