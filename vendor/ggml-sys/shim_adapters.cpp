// Adapters: upstream goes on without some that it cannot use, and names none of them.
#include "shim_internal.h"

#include "gguf.h"
#include "llama-cpp.h"

#include <memory>
#include <stdexcept>

// What was logged, without the functions that passed it on.
static std::string reason_in(const std::string & logged) {
    const std::string front = "failed to apply lora adapter: ";
    const auto at = logged.find(front);
    std::string reason = at == std::string::npos ? logged : logged.substr(at + front.size());
    reason.erase(reason.find_last_not_of(": ") + 1);
    return reason.empty() ? "llama.cpp gave no reason" : reason;
}

void rpaged_check_adapter_files(const common_params & params) {
    for (const auto & lora : params.lora_adapters) {
        if (!rpaged_read_header(lora.path)) {
            throw std::runtime_error("the adapter '" + lora.path +
                                     "' is no readable GGUF; see --lora");
        }
    }
    for (const auto & vector : params.control_vectors) {
        if (common_control_vector_load({vector}).n_embd == -1) {
            throw std::runtime_error("the control vector '" + vector.fname +
                                     "' could not be read; see --control-vector");
        }
    }
}

void rpaged_check_adapters(const common_params & params, llama_model * model,
                           llama_context * context, const std::string & logged) {
    for (const auto & lora : params.lora_adapters) {
        if (model && !context && !lora.ptr) {
            throw std::runtime_error("the adapter '" + lora.path + "' cannot be used: " +
                                     reason_in(logged) + "; see --lora");
        }
    }
    if (params.control_vectors.empty() || !model || !context) {
        return;
    }
    const auto vector = common_control_vector_load(params.control_vectors);
    if (vector.n_embd != llama_model_n_embd(model)) {
        throw std::runtime_error(
            string_format("the control vectors have %d values for each layer, the model has %d; "
                          "see --control-vector",
                          vector.n_embd, llama_model_n_embd(model)));
    }
    // Upstream goes on without them, and a second try would write where no memory is.
    if (logged.find("control vector") != std::string::npos) {
        throw std::runtime_error("the control vectors found no memory; lower -c or -ub");
    }
}
