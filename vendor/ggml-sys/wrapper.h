// What bindgen reads: llama.cpp's public headers, the internal ones that a ggml device
// is made of, and our own doors to llama.cpp's common library.
#include "llama.h"
#include "ggml.h"
#include "ggml-alloc.h"
#include "ggml-backend.h"
#include "ggml-backend-impl.h"
#include "ggml-cpu.h"
#include "ggml-impl.h"
#include "gguf.h"
#include "shim.h"
