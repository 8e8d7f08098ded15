// Devices: which there are, and which a model is laid on.
#include "shim_internal.h"

#include "ggml-backend.h"

#include <cstring>
#include <stdexcept>

// Has the servers be known as devices, as the parser does for --rpc.
static void add_rpc_servers(const std::string & servers) {
    if (servers.empty()) {
        return;
    }
    auto * rpc = ggml_backend_reg_by_name("RPC");
    using add_server_t = ggml_backend_reg_t (*)(const char *);
    auto add = rpc ? (add_server_t) ggml_backend_reg_get_proc_address(
                         rpc, "ggml_backend_rpc_add_server")
                   : nullptr;
    if (!add) {
        throw std::runtime_error("llama.cpp was built without RPC, which --rpc needs");
    }
    for (const auto & server : string_split<std::string>(servers, ',')) {
        ggml_backend_register(add(server.c_str()));
    }
}

extern "C" rpaged_bytes rpaged_device_list(const char * rpc_servers) {
    return rpaged_guard(rpaged_bytes{}, [&] {
        ggml_backend_load_all();
        add_rpc_servers(rpc_servers);
        std::string text = "Available devices:\n";
        bool any = false;
        for (size_t i = 0; i < ggml_backend_dev_count(); i++) {
            auto * device = ggml_backend_dev_get(i);
            if (ggml_backend_dev_type(device) == GGML_BACKEND_DEVICE_TYPE_CPU) {
                continue;
            }
            any = true;
            size_t free = 0, total = 0;
            ggml_backend_dev_memory(device, &free, &total);
            text += string_format("  %s: %s (%zu MiB, %zu MiB free)\n",
                                  ggml_backend_dev_name(device),
                                  ggml_backend_dev_description(device), total >> 20, free >> 20);
        }
        return rpaged_own(any ? text : text + "  (none)\n");
    });
}

static bool is_remote(ggml_backend_dev_t device) {
    auto * registry = ggml_backend_dev_backend_reg(device);
    return registry && strcmp(ggml_backend_reg_name(registry), "RPC") == 0;
}

extern "C" int32_t rpaged_params_use_device(rpaged_params * handle, ggml_backend_device * device,
                                            int32_t load_mode, size_t * others) {
    return rpaged_guard<int32_t>(RPAGED_FAILED, [&]() -> int32_t {
        common_params & p = handle->params;
        std::vector<ggml_backend_dev_t> devices;
        for (auto * given : p.devices) {
            if (given && !is_remote(given)) {
                throw std::runtime_error(string_format(
                    "'%s' and the paged device cannot share a model; leave it out of --device",
                    ggml_backend_dev_name(given)));
            }
            if (given) {
                devices.push_back(given);
            }
        }
        // Without --device, llama.cpp takes all there are, those of RPC servers first.
        for (size_t i = 0; p.devices.empty() && i < ggml_backend_dev_count(); i++) {
            if (is_remote(ggml_backend_dev_get(i))) {
                devices.push_back(ggml_backend_dev_get(i));
            }
        }
        *others = devices.size();
        devices.push_back(device);
        devices.push_back(nullptr);
        p.devices      = devices;
        p.n_gpu_layers = -2; // all
        if (load_mode >= 0) {
            p.load_mode = (llama_load_mode) load_mode;
        }
        p.fit_params   = false;
        p.warmup       = false;
        return RPAGED_OK;
    });
}
