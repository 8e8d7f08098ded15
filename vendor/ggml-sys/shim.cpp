#include "shim.h"

#include "ggml-backend-impl.h"
#include "ggml-impl.h"
#include "llama.h"

#define SIZE_OF(type) {#type, sizeof(struct type)}
#define OFFSET_OF(type, field) {#type "." #field, offsetof(struct type, field)}

static const rpaged_layout_entry LAYOUT[] = {
    SIZE_OF(ggml_tensor),
    OFFSET_OF(ggml_tensor, buffer),
    OFFSET_OF(ggml_tensor, ne),
    OFFSET_OF(ggml_tensor, nb),
    OFFSET_OF(ggml_tensor, op),
    OFFSET_OF(ggml_tensor, op_params),
    OFFSET_OF(ggml_tensor, flags),
    OFFSET_OF(ggml_tensor, src),
    OFFSET_OF(ggml_tensor, view_src),
    OFFSET_OF(ggml_tensor, view_offs),
    OFFSET_OF(ggml_tensor, data),
    OFFSET_OF(ggml_tensor, name),
    OFFSET_OF(ggml_tensor, extra),
    SIZE_OF(ggml_cgraph),
    OFFSET_OF(ggml_cgraph, n_nodes),
    OFFSET_OF(ggml_cgraph, nodes),
    OFFSET_OF(ggml_cgraph, uid),
    SIZE_OF(ggml_backend_buffer_type_i),
    SIZE_OF(ggml_backend_buffer_type),
    SIZE_OF(ggml_backend_buffer_i),
    SIZE_OF(ggml_backend_buffer),
    OFFSET_OF(ggml_backend_buffer, buft),
    OFFSET_OF(ggml_backend_buffer, context),
    OFFSET_OF(ggml_backend_buffer, usage),
    SIZE_OF(ggml_backend_i),
    SIZE_OF(ggml_backend),
    SIZE_OF(ggml_backend_event),
    SIZE_OF(ggml_backend_device_i),
    SIZE_OF(ggml_backend_device),
    SIZE_OF(ggml_backend_dev_props),
    SIZE_OF(ggml_backend_dev_caps),
    SIZE_OF(ggml_backend_reg_i),
    SIZE_OF(ggml_backend_reg),
    SIZE_OF(llama_model_params),
    OFFSET_OF(llama_model_params, devices),
    SIZE_OF(llama_context_params),
    SIZE_OF(llama_batch),
    {nullptr, 0},
};

extern "C" const rpaged_layout_entry * rpaged_layout(void) {
    return LAYOUT;
}

extern "C" int32_t rpaged_backend_api_version(void) {
    return GGML_BACKEND_API_VERSION;
}
