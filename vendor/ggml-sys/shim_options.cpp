// The options: llama-completion's, and those that only llama-cli has.
#include "shim_internal.h"

#include "arg.h"
#include "common.h"

#include <algorithm>
#include <cstring>
#include <memory>

static bool share_a_name(const common_arg & one, const common_arg & other) {
    return std::any_of(one.args.begin(), one.args.end(), [&](const char * name) {
        return std::any_of(other.args.begin(), other.args.end(),
                           [&](const char * arg) { return strcmp(arg, name) == 0; });
    });
}

std::vector<common_arg> rpaged_all_options(common_params & params) {
    auto options = common_params_parser_init(params, RPAGED_EXAMPLE).options;
    const size_t own = options.size();
    common_params scratch;
    for (auto & option : common_params_parser_init(scratch, LLAMA_EXAMPLE_CLI).options) {
        const bool known = std::any_of(options.begin(), options.begin() + own, [&](const auto & one) {
            return share_a_name(one, option);
        });
        if (!known) {
            options.push_back(option);
        }
    }
    return options;
}

bool rpaged_is_extra(const common_arg & option) {
    auto copy = option; // the question is not asked of a constant
    return !copy.in_example(RPAGED_EXAMPLE) && !copy.in_example(LLAMA_EXAMPLE_COMMON);
}

int32_t rpaged_values_of(const common_arg & option) {
    if (option.handler_str_str) {
        return 2;
    }
    return option.handler_string || option.handler_int ? 1 : 0;
}

struct rpaged_options {
    common_params params;
    std::vector<common_arg> list;
    std::vector<std::vector<const char *>> args, args_neg; // each ended by NULL
};

static const char * section_of(common_arg & option) {
    if (option.is_sampling) {
        return "sampling params";
    }
    if (option.is_spec) {
        return "speculative params";
    }
    if (rpaged_is_extra(option)) {
        return "llama-cli params";
    }
    return option.in_example(RPAGED_EXAMPLE) ? "completion params" : "common params";
}

extern "C" rpaged_options * rpaged_options_new(void) {
    return rpaged_guard<rpaged_options *>(nullptr, [] {
        auto options = std::make_unique<rpaged_options>();
        options->list = rpaged_all_options(options->params);
        for (const auto & option : options->list) {
            options->args.push_back(option.args);
            options->args.back().push_back(nullptr);
            options->args_neg.push_back(option.args_neg);
            options->args_neg.back().push_back(nullptr);
        }
        return options.release();
    });
}

extern "C" size_t rpaged_options_count(const rpaged_options * options) {
    return options->list.size();
}

extern "C" rpaged_option rpaged_options_get(const rpaged_options * options, size_t index) {
    return rpaged_guard(rpaged_option{}, [&] {
        auto option = options->list.at(index);
        rpaged_option out{};
        out.section      = section_of(option);
        out.args         = options->args[index].data();
        out.args_neg     = options->args_neg[index].data();
        out.value_hint   = option.value_hint;
        out.value_hint_2 = option.value_hint_2;
        out.env          = option.env;
        out.help         = options->list[index].help.c_str();
        out.values       = rpaged_values_of(option);
        return out;
    });
}

extern "C" void rpaged_options_free(rpaged_options * options) {
    delete options;
}
