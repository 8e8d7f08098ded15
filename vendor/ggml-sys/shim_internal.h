#pragma once
#include "shim.h"

#include "common.h"

#include <exception>
#include <string>

// The parameters behind the opaque handle.
struct rpaged_params {
    common_params params;
};

// Remembers `text` as this thread's last error: one line, trimmed, without "error: ".
void rpaged_fail(const std::string & text);
// The text as rpaged_fail would keep it.
std::string rpaged_one_line(const std::string & text);
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
