// What a model and its context would take: a door to llama.cpp's own rehearsal.
#include "shim_internal.h"

#include "common.h"
#include "ggml-backend.h"
#include "llama.h"
#include "../src/llama-ext.h"

#include <memory>
#include <stdexcept>

struct model_deleter {
    void operator()(llama_model * model) const { llama_model_free(model); }
};
struct context_deleter {
    void operator()(llama_context * context) const { llama_free(context); }
};

extern "C" int32_t rpaged_rehearse(rpaged_params * handle, rpaged_rehearsal * out) {
    return rpaged_guard<int32_t>(RPAGED_FAILED, [&]() -> int32_t {
        rpaged_log_forget_error();
        rpaged_fail("");
        common_params & params = handle->params;
        auto model_params = common_model_params_to_llama(params);
        model_params.no_alloc  = true;
        model_params.load_mode = LLAMA_LOAD_MODE_NONE;
        std::unique_ptr<llama_model, model_deleter> model(
            llama_model_load_from_file(params.model.path.c_str(), model_params));
        if (!model) {
            return RPAGED_FAILED; // the reason is in the log
        }
        auto context_params = common_context_params_to_llama(params);
        std::unique_ptr<llama_context, context_deleter> context(
            llama_init_from_model(model.get(), context_params));
        if (!context) {
            return RPAGED_FAILED;
        }
        *out = {};
        // Asks each buffer type what it would take for which tensors; ours takes notes.
        for (const auto & [type, sizes] : llama_get_memory_breakdown(context.get())) {
            const bool is_host = ggml_backend_buft_is_host(type);
            (is_host ? out->host_model_bytes : out->device_model_bytes) += sizes.model;
            (is_host ? out->host_context_bytes : out->device_context_bytes) += sizes.context;
            (is_host ? out->host_compute_bytes : out->device_compute_bytes) += sizes.compute;
        }
        out->parameters  = llama_model_n_params(model.get());
        out->n_ctx       = llama_n_ctx(context.get());
        out->n_batch     = llama_n_batch(context.get());
        out->n_ubatch    = llama_n_ubatch(context.get());
        out->n_ctx_train = (uint32_t) llama_model_n_ctx_train(model.get());
        out->n_layer     = (uint32_t) llama_model_n_layer(model.get());
        out->n_embd      = (uint32_t) llama_model_n_embd(model.get());
        out->n_head      = (uint32_t) llama_model_n_head(model.get());
        out->n_head_kv   = (uint32_t) llama_model_n_head_kv(model.get());
        out->n_vocab     = (uint32_t) llama_vocab_n_tokens(llama_model_get_vocab(model.get()));
        out->flash_attention = params.flash_attn_type != LLAMA_FLASH_ATTN_TYPE_DISABLED;
        const llama_vocab * vocab = llama_model_get_vocab(model.get());
        if (!params.prompt.empty() && llama_vocab_type(vocab) != LLAMA_VOCAB_TYPE_NONE) {
            out->n_prompt = (uint32_t) common_tokenize(vocab, params.prompt, true, true).size();
        }
        out->kv_type_k   = params.cache_type_k;
        out->kv_type_v   = params.cache_type_v;
        return RPAGED_OK;
    });
}
