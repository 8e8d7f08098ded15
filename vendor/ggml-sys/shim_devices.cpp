// Devices: which there are, and which a model is laid on.
#include "shim_internal.h"

#include "ggml-backend.h"

#include <cstring>
#include <stdexcept>
#include <vector>

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

static bool is_remote(ggml_backend_dev_t device) {
    auto * registry = ggml_backend_dev_backend_reg(device);
    return registry && strcmp(ggml_backend_reg_name(registry), "RPC") == 0;
}

// Whether it is a GPU of this machine.
static bool is_gpu(ggml_backend_dev_t device) {
    const auto type = ggml_backend_dev_type(device);
    return !is_remote(device) && (type == GGML_BACKEND_DEVICE_TYPE_GPU ||
                                  type == GGML_BACKEND_DEVICE_TYPE_IGPU);
}

// The GPU that llama.cpp would take first: an integrated one only where there is no other.
static ggml_backend_dev_t first_gpu() {
    ggml_backend_dev_t integrated = nullptr;
    for (size_t i = 0; i < ggml_backend_dev_count(); i++) {
        auto * device = ggml_backend_dev_get(i);
        if (is_gpu(device) && ggml_backend_dev_type(device) == GGML_BACKEND_DEVICE_TYPE_GPU) {
            return device;
        }
        if (is_gpu(device) && !integrated) {
            integrated = device;
        }
    }
    return integrated;
}

// What --device may name under paging.
static std::string paged_devices() {
    std::string text = "Under paging one of these computes:\n";
    const auto * first = first_gpu();
    for (size_t i = 0; i < ggml_backend_dev_count(); i++) {
        auto * device = ggml_backend_dev_get(i);
        if (is_gpu(device)) {
            text += string_format("  %s%s\n", ggml_backend_dev_name(device),
                                  device == first ? " (default)" : "");
        }
    }
    return text + string_format("  none: the processor%s\n", first ? "" : " (default)");
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
        text += any ? "" : "  (none)\n";
        return rpaged_own(text + paged_devices());
    });
}

extern "C" int32_t rpaged_params_inner_device(const rpaged_params * handle, bool automatic,
                                              ggml_backend_device ** device) {
    return rpaged_guard<int32_t>(RPAGED_FAILED, [&]() -> int32_t {
        *device = nullptr;
        const auto & given = handle->params.devices;
        if (given.empty()) {
            *device = automatic ? first_gpu() : nullptr;
            return RPAGED_OK;
        }
        for (auto * named : given) {
            if (!named || is_remote(named)) {
                continue;
            }
            if (!is_gpu(named)) {
                rpaged_fail(string_format("'%s' of --device is no GPU, and cannot compute a model "
                                          "by itself; name one of --list-devices, or 'none'",
                                          ggml_backend_dev_name(named)));
                return RPAGED_USAGE;
            }
            if (*device && *device != named) {
                rpaged_fail(string_format("'--device' names '%s' and '%s', and under paging one "
                                          "device computes; name one of them",
                                          ggml_backend_dev_name(*device),
                                          ggml_backend_dev_name(named)));
                return RPAGED_USAGE;
            }
            *device = named;
        }
        return RPAGED_OK;
    });
}

extern "C" int32_t rpaged_params_use_device(rpaged_params * handle, ggml_backend_device * device,
                                            int32_t load_mode, size_t * others) {
    return rpaged_guard<int32_t>(RPAGED_FAILED, [&]() -> int32_t {
        common_params & p = handle->params;
        std::vector<ggml_backend_dev_t> devices;
        for (auto * given : p.devices) {
            // The GPU is behind the paged device, see `rpaged_params_inner_device`.
            if (given && is_remote(given)) {
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
