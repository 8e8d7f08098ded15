#pragma once
#include <stddef.h>
#include <stdint.h>
#ifdef __cplusplus
extern "C" {
#endif

// Sizes and offsets as the C++ compiler sees them, for the layout test.
struct rpaged_layout_entry {
    const char * name; // "struct" or "struct.field"
    size_t value;      // size of the struct, or offset of the field, in bytes
};
// The table, ended by an entry whose name is NULL.
const struct rpaged_layout_entry * rpaged_layout(void);
// GGML_BACKEND_API_VERSION of the headers the shim was compiled with.
int32_t rpaged_backend_api_version(void);

#ifdef __cplusplus
}
#endif
