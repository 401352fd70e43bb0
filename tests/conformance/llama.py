"""llama.cpp through its C interface in llama_cpp: logits as exactly as it can, token ids, its quantiser."""
import ctypes
import os

import numpy

from common import NO_LLAMA_CPP

errors = []


def listen(level, text, _):
    """In place of llama.cpp's log: keeps what went wrong."""
    if level >= 4:  # GGML_LOG_LEVEL_ERROR
        errors.append(text.decode(errors="replace").strip())


absent = None
try:
    import llama_cpp
    quiet = llama_cpp.llama_log_callback(listen)  # must outlive the library
    llama_cpp.llama_log_set(quiet, None)
    llama_cpp.llama_backend_init()
except Exception as e:
    absent = f"llama_cpp cannot be imported ({e}): SKIP_LLAMA_CPP=1 does without"


def missing():
    """Why llama.cpp is not called, or None."""
    return NO_LLAMA_CPP if os.environ.get("SKIP_LLAMA_CPP") else absent


def fail(what):
    raise RuntimeError(f"llama.cpp: {what}: {'; '.join(errors[-3:])}")


class Model:
    """An open model; `adapter` is a GGUF adapter on it. Use as a context manager."""

    def __init__(self, path, adapter=None, vocab_only=False):
        errors.clear()
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers, params.vocab_only, params.use_mmap = 0, vocab_only, True
        self.model = llama_cpp.llama_model_load_from_file(path.encode(), params)
        if not self.model:
            fail(f"cannot load {path}")
        self.vocab = llama_cpp.llama_model_get_vocab(self.model)
        self.adapter = None
        if adapter:
            self.adapter = llama_cpp.llama_adapter_lora_init(self.model, adapter.encode())
            if not self.adapter:
                fail(f"cannot load {adapter}")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        llama_cpp.llama_model_free(self.model)

    def logits(self, ids):
        """(tokens, vocabulary). Flash attention is off and the cache is f32, for they round more than the
        rest: what remains is that products with quantised weights round the activations to int8."""
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = max(64, len(ids))
        params.n_threads = params.n_threads_batch = 1
        params.flash_attn_type = 0  # LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.type_k = params.type_v = 0  # GGML_TYPE_F32
        params.no_perf = True
        ctx = llama_cpp.llama_init_from_model(self.model, params)
        if not ctx:
            fail("no context")
        if self.adapter:
            one = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(self.adapter)
            scale = (ctypes.c_float * 1)(1.0)
            if llama_cpp.llama_set_adapters_lora(ctx, one, 1, scale) != 0:
                fail("the adapter cannot be set")
        n, V = len(ids), llama_cpp.llama_vocab_n_tokens(self.vocab)
        batch = llama_cpp.llama_batch_init(n, 0, 1)
        batch.n_tokens = n
        for i, t in enumerate(ids):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = t, i, 1, 1
            batch.seq_id[i][0] = 0
        if llama_cpp.llama_decode(ctx, batch) != 0:
            fail("decoding")
        out = numpy.ctypeslib.as_array(llama_cpp.llama_get_logits(ctx), (n, V)).copy()
        llama_cpp.llama_batch_free(batch)
        llama_cpp.llama_free(ctx)
        return out

    def tokenize(self, text):
        """Ids of a text, special tokens neither added nor recognised."""
        data = text.encode()
        room = (llama_cpp.llama_token * (len(data) + 16))()
        n = llama_cpp.llama_tokenize(self.vocab, data, len(data), room, len(room), False, False)
        if n < 0:
            fail("tokenizing")
        return list(room[:n])


def logits(path, ids, adapter=None):
    with Model(path, adapter) as m:
        return m.logits(ids)


def quantize(source, out, ftype):
    """llama.cpp's quantiser; ftype like "MOSTLY_Q4_K_M"."""
    errors.clear()
    params = llama_cpp.llama_model_quantize_default_params()
    params.nthread = 1
    params.ftype = getattr(llama_cpp, "LLAMA_FTYPE_" + ftype)
    if llama_cpp.llama_model_quantize(source.encode(), out.encode(), ctypes.byref(params)) != 0:
        fail(f"cannot quantise to {ftype}")
