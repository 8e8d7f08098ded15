// Models and contexts apart from each other, without samplers: doors for `bench`.
#include "shim_internal.h"

#include "build-info.h"
#include "common.h"
#include "ggml-cpu.h"
#include "llama.h"

#include <stdexcept>
#include <string>
#include <vector>

static std::string join(const std::vector<std::string> & names, const char * separator) {
    std::string all;
    for (const auto & name : names) {
        all += (all.empty() ? "" : separator) + name;
    }
    return all;
}

static std::string devices_described(bool gpus) {
    std::vector<std::string> names;
    for (size_t i = 0; i < ggml_backend_dev_count(); i++) {
        auto * device = ggml_backend_dev_get(i);
        const auto type = ggml_backend_dev_type(device);
        const bool is_gpu = type == GGML_BACKEND_DEVICE_TYPE_GPU ||
                            type == GGML_BACKEND_DEVICE_TYPE_IGPU;
        if (is_gpu == gpus && (gpus || type == GGML_BACKEND_DEVICE_TYPE_CPU ||
                               type == GGML_BACKEND_DEVICE_TYPE_ACCEL)) {
            names.push_back(ggml_backend_dev_description(device));
        }
    }
    return join(names, ", ");
}

static std::string backend_names() {
    std::vector<std::string> names;
    for (size_t i = 0; i < ggml_backend_reg_count(); i++) {
        const std::string name = ggml_backend_reg_name(ggml_backend_reg_get(i));
        if (name != "CPU" && name.rfind("RPC", 0) != 0) {
            names.push_back(name);
        }
    }
    return names.empty() ? "CPU" : join(names, ",");
}

extern "C" rpaged_bytes rpaged_bench_text(rpaged_bench_fact fact) {
    return rpaged_guard(rpaged_bytes{}, [&] {
        switch (fact) {
            case RPAGED_BENCH_COMMIT:   return rpaged_own(llama_commit());
            case RPAGED_BENCH_CPUS:     return rpaged_own(devices_described(false));
            case RPAGED_BENCH_GPUS:     return rpaged_own(devices_described(true));
            case RPAGED_BENCH_BACKENDS: return rpaged_own(backend_names());
        }
        throw std::runtime_error("no such fact");
    });
}

extern "C" int32_t rpaged_bench_build_number(void) {
    return llama_build_number();
}

extern "C" bool rpaged_bench_set_priority(int32_t priority) {
    return rpaged_guard(false, [&] { return set_process_priority((ggml_sched_priority) priority); });
}

extern "C" llama_model * rpaged_bench_model_new(rpaged_params * handle) {
    return rpaged_guard<llama_model *>(nullptr, [&] {
        rpaged_log_forget_error();
        rpaged_fail("");
        auto params = common_model_params_to_llama(handle->params);
        return llama_model_load_from_file(handle->params.model.path.c_str(), params);
    });
}

extern "C" llama_context * rpaged_bench_context_new(llama_model * model,
                                                    const rpaged_params * handle, int32_t n_ctx,
                                                    bool embeddings) {
    return rpaged_guard<llama_context *>(nullptr, [&] {
        rpaged_log_forget_error();
        rpaged_fail("");
        auto params = common_context_params_to_llama(handle->params);
        params.n_ctx      = (uint32_t) n_ctx;
        params.embeddings = embeddings;
        return llama_init_from_model(model, params);
    });
}

extern "C" ggml_threadpool * rpaged_bench_threadpool_new(const rpaged_params * handle) {
    return rpaged_guard<ggml_threadpool *>(nullptr, [&] {
        auto params = ggml_threadpool_params_from_cpu_params(handle->params.cpuparams);
        return ggml_threadpool_new(&params);
    });
}

extern "C" int32_t rpaged_bench_decode(llama_context * context, const int32_t * tokens,
                                       size_t count) {
    return rpaged_guard<int32_t>(-1, [&]() -> int32_t {
        common_batch batch = common_batch_get_one(context, tokens, (int32_t) count);
        return llama_process(context, LLAMA_PROCESS_TYPE_DECODE, batch.get());
    });
}
