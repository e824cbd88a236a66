"""The engines of bench_peers.py: ours and the peers, each a small class.

An engine gets token ids and gives vectors of length 1, with the batching that its users would do: texts sorted by
length, padded in batches of 32 where the engine pads, packed one after the other where it does not. Threads are set
through each engine's own setting; everything that is not named in `settings` is at its default.
"""

from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import peer_models
from numpy.typing import NDArray

Vectors = NDArray[np.float32]
Ids = Sequence[NDArray[np.int32]]
BATCH = 32  # sentence-transformers' default, and ours


class Engine:
    """What bench_peers.py asks of each. `file` is made beforehand, by `convert`, in another process."""

    packages: ClassVar[tuple[str, ...]] = ()
    maker: ClassVar[peer_models.Maker | None] = None
    ours = False
    float32 = False  # whether all its arithmetic is float32
    dense = "yes"  # whether its Dense heads run

    def __init__(self, checkpoint: Path, work: Path, threads: int) -> None:
        self.checkpoint, self.threads = checkpoint, threads
        maker = type(self).maker
        self.file = checkpoint if maker is None else maker(checkpoint, work)
        self.settings: dict[str, Any] = {}
        self.load()

    @classmethod
    def convert(cls, checkpoint: Path, work: Path) -> None:
        if cls.maker is not None:
            cls.maker(checkpoint, work)

    def load(self) -> None:
        raise NotImplementedError

    def embed(self, ids: Ids) -> Vectors:
        """[T] each -> [B, dim], one call of a user."""
        raise NotImplementedError

    def megabytes(self) -> float:
        """Size of the model's files: of a folder its weights, for others the folder that was converted to."""
        files = self.file.rglob("*.safetensors") if self.file.is_dir() else self.file.parent.iterdir()
        return sum(file.stat().st_size for file in files) / 1e6

    def versions(self) -> str:
        return ", ".join(f"{package} {version(package)}" for package in self.packages)


class Padded(Engine):
    """Engines that take [B, T] ids and a mask."""

    def run(self, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> Vectors:
        raise NotImplementedError

    def embed(self, ids: Ids) -> Vectors:
        vectors: list[Vectors] = [np.empty(0, np.float32)] * len(ids)
        for batch in sorted_batches(ids):
            width = max(len(ids[i]) for i in batch)
            tokens, mask = np.zeros((2, len(batch), width), dtype=np.int64)
            for row, i in enumerate(batch):
                tokens[row, : len(ids[i])] = ids[i]
                mask[row, : len(ids[i])] = 1
            for i, vector in zip(batch, self.run(tokens, mask), strict=True):
                vectors[i] = vector
        return np.stack(vectors)


def sorted_batches(ids: Ids) -> Iterator[list[int]]:
    """Numbers of the texts, longest first, 32 at a time: what sentence-transformers does."""
    order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))
    for start in range(0, len(order), BATCH):
        yield order[start : start + BATCH]


class Ours(Engine):
    packages = ("gemma-np", "numpy", "numba")
    ours = True

    def load(self) -> None:
        from gemma_np import EmbeddingGemma

        self.model = EmbeddingGemma(self.file, threads=self.threads)
        self.settings = {"quantization": self.model.quantization, "threads": self.threads}

    def embed(self, ids: Ids) -> Vectors:
        from gemma_np.fast import split

        done = []  # as `encode` does: 32 texts in the order they come, split where they have many tokens
        for start in range(0, len(ids), BATCH):
            some = ids[start : start + BATCH]
            done += [self.model.embed_ids(some[part]) for part in split(some)]
        return np.concatenate(done)


class OursFloat32(Ours):
    float32 = True


class OursQ8(Ours):
    maker = staticmethod(peer_models.bundle("q8_0"))


class OursQ4(Ours):
    maker = staticmethod(peer_models.bundle("q4_0"))


class OursMixed(Ours):
    maker = staticmethod(peer_models.bundle("mixed"))


class Torch(Padded):
    packages = ("sentence-transformers", "transformers", "torch")
    dtype = "float32"
    float32 = True

    def load(self) -> None:
        import torch
        from sentence_transformers import SentenceTransformer

        torch.set_num_threads(self.threads)
        dtype = getattr(torch, self.dtype)
        self.model = SentenceTransformer(str(self.checkpoint), device="cpu", model_kwargs={"dtype": dtype})
        self.settings = {
            "dtype": self.dtype,
            "threads": torch.get_num_threads(),
            "attention": self.model[0].model.config._attn_implementation,
            "cpu": torch.backends.cpu.get_cpu_capability(),
            "mkldnn": torch.backends.mkldnn.is_available(),
        }

    def run(self, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> Vectors:
        import torch

        features = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
        with torch.inference_mode():
            vectors: Vectors = self.model(features)["sentence_embedding"].float().numpy()
        return vectors


class TorchBfloat16(Torch):
    dtype = "bfloat16"
    float32 = False


class OnnxRuntime(Padded):
    packages = ("onnxruntime", "onnx", "onnxscript")
    maker = staticmethod(peer_models.onnx_float32)
    float32 = True

    def load(self) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        self.session = onnxruntime.InferenceSession(self.file, options, providers=["CPUExecutionProvider"])
        self.settings = {
            "model": "opset 23, Attention and RotaryEmbedding as one node each",
            "intra_op_num_threads": self.threads,
            "providers": self.session.get_providers(),
        }

    def run(self, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> Vectors:
        vectors: Vectors = self.session.run(None, {"input_ids": ids, "attention_mask": mask})[0]
        return vectors


class OnnxRuntimeInt8(OnnxRuntime):
    maker = staticmethod(peer_models.onnx_int8)
    float32 = False

    def load(self) -> None:
        super().load()
        self.settings["weights"] = "int8 per channel, activations uint8 per tensor (quantize_dynamic)"


class OpenVino(Padded):
    """Its default on a CPU with bfloat16 instructions is to compute in bfloat16 what is not quantised."""

    packages = ("openvino", "nncf")
    hints: ClassVar[dict[str, Any]] = {}
    weights = ""

    def load(self) -> None:
        import openvino

        core = openvino.Core()
        hints = {"INFERENCE_NUM_THREADS": self.threads, "PERFORMANCE_HINT": "LATENCY", **self.hints}
        self.compiled = core.compile_model(self.file, "CPU", hints)
        self.request = self.compiled.create_infer_request()
        names = ("INFERENCE_PRECISION_HINT", "DYNAMIC_QUANTIZATION_GROUP_SIZE", "NUM_STREAMS", "INFERENCE_NUM_THREADS")
        got = {name.lower(): self.compiled.get_property(name) for name in names}
        got["inference_precision_hint"] = got["inference_precision_hint"].to_string()
        cpu = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        self.settings = {"weights": self.weights, **got, "cpu": " ".join(cpu)}

    def run(self, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> Vectors:
        vectors: Vectors = self.request.infer({"input_ids": ids, "attention_mask": mask})[0]
        return vectors.copy()  # the next call writes into it


class OpenVinoInt8(OpenVino):
    maker = staticmethod(peer_models.openvino_int8)
    weights = "int8_asym per channel, activations int8 in groups"


class OpenVinoInt4(OpenVino):
    maker = staticmethod(peer_models.openvino_int4)
    weights = "int4_sym in groups of 32 (embedding and last Dense int8), activations int8 in groups"


class OpenVinoInt8Float32(OpenVinoInt8):
    hints: ClassVar[dict[str, Any]] = {"INFERENCE_PRECISION_HINT": "f32"}


class OpenVinoInt4Float32(OpenVinoInt4):
    hints: ClassVar[dict[str, Any]] = {"INFERENCE_PRECISION_HINT": "f32"}


class LlamaCpp(Engine):
    """libllama's C functions: texts packed into one batch as sequences; mean pooling and Dense heads are llama.cpp's.

    Its attention takes keys and values in float16, also in F32 (flash attention, on by default)."""

    packages = ("llama-cpp-python", "gguf")
    maker = staticmethod(peer_models.gguf_float32)
    float32 = True
    longest = 2048
    packed = (
        512  # tokens per call, its default; more would be slower, as attention to other texts is masked, not skipped
    )

    def load(self) -> None:
        import llama_cpp as llama

        self.quiet = llama.llama_log_callback(lambda level, text, user: None)  # kept: C holds it
        llama.llama_log_set(self.quiet, None)
        llama.llama_backend_init()
        self.model = llama.llama_model_load_from_file(str(self.file).encode(), llama.llama_model_default_params())
        if not self.model:
            raise RuntimeError(f"llama.cpp refuses {self.file}")
        params = llama.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = self.longest  # a text must fit one physical batch
        params.n_seq_max = BATCH
        params.kv_unified = True
        params.n_threads = params.n_threads_batch = self.threads
        params.embeddings = True
        self.context = llama.llama_init_from_model(self.model, params)
        if not self.context:
            raise RuntimeError("llama.cpp gives no context")
        self.batch = llama.llama_batch_init(self.longest, 0, 1)
        self.dim = llama.llama_model_n_embd(self.model)
        self.settings = {
            "threads": self.threads,
            "n_ubatch": self.longest,
            "tokens per call": f"up to {self.packed}, longer texts alone",
            "flash attention": "auto",
            "system": "".join(llama.llama_print_system_info().decode().split(" = 1 |")),
        }

    def packs(self, ids: Ids) -> Iterator[list[int]]:
        """Numbers of the texts that go into one call."""
        pack: list[int] = []
        for i, tokens in enumerate(ids):
            if pack and (sum(len(ids[j]) for j in pack) + len(tokens) > self.packed or len(pack) == BATCH):
                yield pack
                pack = []
            pack.append(i)
        yield pack

    def embed(self, ids: Ids) -> Vectors:
        import llama_cpp as llama

        vectors = np.empty((len(ids), self.dim), np.float32)
        for pack in self.packs(ids):
            filled = 0
            for sequence, i in enumerate(pack):
                for position, token in enumerate(ids[i].tolist()):
                    self.batch.token[filled] = token
                    self.batch.pos[filled] = position
                    self.batch.n_seq_id[filled] = 1
                    self.batch.seq_id[filled][0] = sequence
                    self.batch.logits[filled] = 1
                    filled += 1
            self.batch.n_tokens = filled
            if llama.llama_encode(self.context, self.batch):
                raise RuntimeError("llama_encode failed")
            for sequence, i in enumerate(pack):
                pooled = llama.llama_get_embeddings_seq(self.context, sequence)
                vectors[i] = np.ctypeslib.as_array(pooled, (self.dim,))
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


class LlamaCppQ8(LlamaCpp):
    maker = staticmethod(peer_models.gguf_q8_0)
    float32 = False


class LlamaCppQ4(LlamaCpp):
    maker = staticmethod(peer_models.gguf_q4_0)
    float32 = False


# By the names that the tables have.
ENGINES: dict[str, type[Engine]] = {
    "gemma_np float32": OursFloat32,
    "gemma_np q8_0": OursQ8,
    "gemma_np q4_0": OursQ4,
    "sentence-transformers float32": Torch,
    "ONNX Runtime float32": OnnxRuntime,
    "ONNX Runtime int8": OnnxRuntimeInt8,
    "OpenVINO int8": OpenVinoInt8,
    "OpenVINO int4": OpenVinoInt4,
    "llama.cpp F32": LlamaCpp,
    "llama.cpp Q8_0": LlamaCppQ8,
    "llama.cpp Q4_0": LlamaCppQ4,
}
MORE: dict[str, type[Engine]] = {  # run when they are asked for
    "gemma_np mixed": OursMixed,
    "sentence-transformers bfloat16": TorchBfloat16,
    "OpenVINO int8, f32 hint": OpenVinoInt8Float32,
    "OpenVINO int4, f32 hint": OpenVinoInt4Float32,
}
REFERENCE = "sentence-transformers float32"
NAMED = {**ENGINES, **MORE}


def chosen(patterns: list[str] | None, usual: Iterable[str], more: Iterable[str] = ()) -> list[str]:
    """Engines by any part of their names; those of `more` by their whole names. None: the usual ones."""
    usual = list(usual)
    if patterns is None:
        return usual
    names: list[str] = []
    for pattern in patterns:
        exact = [name for name in [*usual, *more] if name.lower() == pattern.lower()]
        found = exact or [name for name in usual if pattern.lower() in name.lower()]
        if not found:
            raise SystemExit(f"no engine is called {pattern!r}; there are {', '.join([*usual, *more])}")
        names += [name for name in found if name not in names]
    return names
