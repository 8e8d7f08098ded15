#pragma once
#include "shim.h"

#include "arg.h"
#include "common.h"

#include <exception>
#include <string>
#include <vector>

// The parameters behind the opaque handle.
struct rpaged_params {
    common_params params;
};

// Whose options these are, and whose parser reads them.
static const llama_example RPAGED_EXAMPLE = LLAMA_EXAMPLE_COMPLETION;

// llama-completion's options, then those that only llama-cli has; sets the defaults of the
// former in `params`.
std::vector<common_arg> rpaged_all_options(common_params & params);
// Whether only llama-cli has the option: llama-completion's parser does not know it.
bool rpaged_is_extra(const common_arg & option);
// How many values follow the option's flag.
int32_t rpaged_values_of(const common_arg & option);

// Remembers `text` as this thread's last error: one line, trimmed, without "error: ".
void rpaged_fail(const std::string & text);
// The text as rpaged_fail would keep it.
std::string rpaged_one_line(const std::string & text);
// Forgets what llama.cpp has logged as an error so far.
void rpaged_forget_logged_error();
// A copy that the caller owns; never NULL, so that NULL can mean failure.
struct rpaged_bytes rpaged_own(const std::string & text);

// Runs `body`; turns an exception into the last error and the result into `otherwise`.
template <typename T, typename F> T rpaged_guard(T otherwise, F && body) noexcept {
    try {
        return body();
    } catch (const std::exception & error) {
        try {
            rpaged_fail(error.what());
        } catch (...) {
        }
    } catch (...) {
        try {
            rpaged_fail("llama.cpp threw something that is no exception");
        } catch (...) {
        }
    }
    return otherwise;
}
