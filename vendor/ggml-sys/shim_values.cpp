// Values of options: stricter than llama.cpp's own reading of numbers, which takes '4x' for
// 4, and a note of which option a refusal was about.
#include "shim_internal.h"

#include "arg.h"
#include "common.h"

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <regex>
#include <stdexcept>

static thread_local std::string BLAMED_OPTION, BLAMED_VALUE;

void rpaged_blame(const std::string & option, const std::string & value) {
    BLAMED_OPTION = option;
    BLAMED_VALUE  = value;
}

extern "C" rpaged_bytes rpaged_blamed_option(void) {
    return rpaged_guard(rpaged_bytes{}, [] { return rpaged_own(BLAMED_OPTION); });
}

extern "C" rpaged_bytes rpaged_blamed_value(void) {
    return rpaged_guard(rpaged_bytes{}, [] { return rpaged_own(BLAMED_VALUE); });
}

// ---- numbers ---------------------------------------------------------------------------------

static std::string trimmed(const std::string & text) {
    const char * blank = " \t\r\n";
    const auto first = text.find_first_not_of(blank);
    if (first == std::string::npos) {
        return "";
    }
    return text.substr(first, text.find_last_not_of(blank) - first + 1);
}

// Throws unless all of `text` is one number.
static double number_in(const std::string & text) {
    const std::string word = trimmed(text);
    char * end = nullptr;
    const double value = std::strtod(word.c_str(), &end);
    if (word.empty() || *end != '\0' || std::isnan(value)) {
        throw std::runtime_error("'" + text + "' is not a number");
    }
    return value;
}

// Throws unless all of `text` is one whole number.
static long long whole_number_in(const std::string & text) {
    const std::string word = trimmed(text);
    char * end = nullptr;
    errno = 0;
    const long long value = std::strtoll(word.c_str(), &end, 10);
    if (word.empty() || *end != '\0') {
        number_in(text);
        throw std::runtime_error("'" + text + "' is not a whole number");
    }
    if (errno == ERANGE) {
        throw std::runtime_error("'" + text + "' is too large");
    }
    return value;
}

// ---- what each option takes ------------------------------------------------------------------

static bool goes_by(const common_arg & option, const char * name) {
    return std::any_of(option.args.begin(), option.args.end(),
                       [&](const char * arg) { return strcmp(arg, name) == 0; });
}

static bool hints(const common_arg & option, const char * hint) {
    return option.value_hint && strcmp(option.value_hint, hint) == 0;
}

static bool takes_whole_number(const common_arg & option) {
    return option.handler_int || hints(option, "<0|1>") || hints(option, "<0...100>") ||
           hints(option, "SEED");
}

static bool takes_number(const common_arg & option) {
    return hints(option, "N") || hints(option, "P") || hints(option, "L");
}

static std::vector<std::string> split_at(const std::string & text, const char * separators) {
    std::vector<std::string> parts;
    size_t start = 0;
    for (size_t end; (end = text.find_first_of(separators, start)) != std::string::npos;) {
        parts.push_back(text.substr(start, end - start));
        start = end + 1;
    }
    parts.push_back(text.substr(start));
    return parts;
}

// `FILE:SCALE,...`, with the files left to the handler.
static void check_scales(const std::string & value) {
    for (const auto & item : split_at(value, ",")) {
        const auto colon = item.rfind(':');
        if (colon != std::string::npos) {
            number_in(item.substr(colon + 1));
        }
    }
}

// `KEY=TYPE:VALUE,...`, with keys and types left to the handler.
static void check_overrides(const std::string & value) {
    for (const auto & item : split_at(value, ",")) {
        const auto equals = item.find('=');
        if (equals == std::string::npos) {
            continue;
        }
        const std::string typed = item.substr(equals + 1);
        if (typed.compare(0, 4, "int:") == 0) {
            whole_number_in(typed.substr(4));
        } else if (typed.compare(0, 6, "float:") == 0) {
            number_in(typed.substr(6));
        }
    }
}

void rpaged_check_value(const common_arg & option, const std::string & first,
                        const std::string & second) {
    if (goes_by(option, "--gpu-layers") || goes_by(option, "--spec-draft-ngl")) {
        if (first != "auto" && first != "all") {
            whole_number_in(first);
        }
    } else if (goes_by(option, "--control-vector-layer-range")) {
        whole_number_in(first);
        whole_number_in(second);
    } else if (goes_by(option, "--tensor-split") || goes_by(option, "--fit-target")) {
        for (const auto & part : split_at(first, ",/")) {
            if (!part.empty()) {
                number_in(part);
            }
        }
    } else if (goes_by(option, "--lora-scaled") || goes_by(option, "--control-vector-scaled")) {
        check_scales(first);
    } else if (goes_by(option, "--override-kv")) {
        check_overrides(first);
    } else if (goes_by(option, "--logit-bias")) {
        const auto sign = first.find_first_of("+-", 1);
        if (sign == std::string::npos) {
            throw std::runtime_error("give the token's number, then '+' or '-' and the bias");
        }
        whole_number_in(first.substr(0, sign));
        number_in(first.substr(sign + 1));
    } else if (option.value_hint && strcmp(option.value_hint, "lo-hi") == 0) {
        if (!std::regex_match(first, std::regex("[0-9]*-[0-9]*"))) {
            throw std::runtime_error("give the first and the last processor, as in '0-3'");
        }
    } else if (takes_whole_number(option)) {
        const long long value = whole_number_in(first);
        if (hints(option, "SEED") && (value < INT32_MIN || value > (long long) UINT32_MAX)) {
            throw std::runtime_error("'" + first + "' is too large");
        }
    } else if (takes_number(option)) {
        number_in(first);
    }
}
