// Options and parameters: doors to llama.cpp's command line parser.
#include "shim_internal.h"

#include "arg.h"
#include "build-info.h"
#include "chat.h"
#include "common.h"
#include "download.h"
#include "log.h"
#include "preset.h"
#include "sampling.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <initializer_list>
#include <map>
#include <memory>
#include <regex>
#include <stdexcept>
#include <utility>
#include <vector>

// ---- rehearsal -----------------------------------------------------------------------------
// llama.cpp's parser ends the process on some failures. So each of its steps that can fail
// is rehearsed here first, on scratch parameters, where a failure is only an exception.

// The most bytes of a value that a sentence shows.
static const size_t SHOWN_BYTES = 120;

// A value as a sentence shows it: its first line, and not too much of that.
static std::string shown(const std::string & value) {
    std::string text = value.substr(0, value.find('\n'));
    if (text.size() > SHOWN_BYTES) {
        size_t end = SHOWN_BYTES;
        while (end > 0 && (text[end] & 0xC0) == 0x80) {
            end--; // not within a character
        }
        text.resize(end);
    }
    return text.size() < value.size() ? text + "..." : text;
}

// A failure that is the command line's fault.
struct usage_error : std::runtime_error {
    using std::runtime_error::runtime_error;
};

static std::string reason(const std::exception & error) {
    const std::string text = rpaged_one_line(error.what());
    if (text == "stoi" || text == "stof" || text == "stoul" || text == "stod" || text == "stol") {
        return "not a number, or too large";
    }
    return text;
}

static void run_handler(const common_arg & option, common_params & params, bool positive,
                        const std::string & first, const std::string & second) {
    rpaged_blame(option.args.front(), first);
    if (option.handler_int || option.handler_string || option.handler_str_str) {
        rpaged_check_value(option, first, second);
    }
    if (option.handler_void) {
        option.handler_void(params);
    } else if (option.handler_bool) {
        option.handler_bool(params, positive);
    } else if (option.handler_int) {
        option.handler_int(params, std::stoi(first));
    } else if (option.handler_string) {
        option.handler_string(params, first);
    } else if (option.handler_str_str) {
        option.handler_str_str(params, first, second);
    }
}

static bool is_one_of(const common_arg & option, std::initializer_list<const char *> names) {
    return std::any_of(names.begin(), names.end(), [&](const char * name) {
        return std::any_of(option.args.begin(), option.args.end(),
                           [&](const char * arg) { return strcmp(arg, name) == 0; });
    });
}

// Whether an option prints something and ends the process.
static bool prints_and_exits(const common_arg & option) {
    return is_one_of(option, {"--help", "--version", "--cache-list", "--completion-bash",
                              "--list-devices"});
}

// Whether the rehearsal has to leave an option's handler to the parser proper: a pipe can
// be read only once, and one handler prints what it has read.
static bool reads_once(const common_arg & option, const std::string & value) {
    if (!is_one_of(option, {"--file", "--system-prompt-file", "--binary-file", "--grammar-file",
                            "--json-schema-file", "--chat-template-file"})) {
        return false;
    }
    std::error_code ignored;
    if (!std::filesystem::exists(value, ignored)) {
        throw std::runtime_error("the file does not exist");
    }
    if (std::filesystem::is_directory(value, ignored)) {
        throw std::runtime_error("that is a folder");
    }
    if (!std::filesystem::is_regular_file(value, ignored)) {
        if (is_one_of(option, {"--chat-template-file"})) {
            throw std::runtime_error("the file is not a regular one");
        }
        return true;
    }
    if (!std::ifstream(value)) {
        throw std::runtime_error("the file may not be read");
    }
    return is_one_of(option, {"--binary-file"});
}

static void rehearse_preset(const common_preset & preset, common_params & params) {
    for (const auto & entry : preset.options) {
        if (prints_and_exits(entry.first)) {
            throw std::runtime_error(std::string("'") + entry.first.args.front() +
                                     "' does not belong in a configuration file");
        }
        rpaged_blame(entry.first.args.front(), entry.second);
        if (entry.first.handler_int || entry.first.handler_string) {
            rpaged_check_value(entry.first, entry.second, "");
        }
    }
    preset.apply_to_params(params);
}

static void rehearse_config_files(common_params & params) {
    std::vector<std::filesystem::path> paths;
#if defined(_WIN32)
    const auto program_data = common_get_path_from_env("PROGRAMDATA");
    if (!program_data.empty()) {
        paths.push_back(program_data / "llama.cpp" / "config.ini");
    }
#else
    paths.push_back("/etc/llama.cpp/config.ini");
#endif
    try {
        paths.push_back(fs_get_config_directory() / "config.ini");
    } catch (const std::exception &) {
        // Without a home there is no file of the user's: upstream goes on as well.
    }
    for (const auto & path : paths) {
        std::error_code ignored;
        if (!std::filesystem::exists(path, ignored)) {
            continue;
        }
        try {
            common_preset_context context(RPAGED_EXAMPLE);
            context.ignore_unknown_keys = true;
            common_preset global;
            const auto presets = context.load_from_ini(path, global);
            rehearse_preset(global, params);
            const auto found = presets.find(COMMON_PRESET_DEFAULT_NAME);
            if (found != presets.end()) {
                rehearse_preset(found->second, params);
            }
        } catch (const std::exception & error) {
            throw usage_error("configuration file '" + fs_path_to_utf8(path) + "': " + reason(error));
        }
    }
}

static void rehearse_environment(const std::vector<common_arg> & options, common_params & params) {
    for (const auto & option : options) {
        std::string value;
        if (!option.get_value_from_env(value)) {
            continue;
        }
        try {
            const bool truthy = common_arg_utils::is_truthy(value);
            if (option.handler_bool && !truthy && !common_arg_utils::is_falsey(value)) {
                throw std::invalid_argument("neither true nor false");
            }
            if (!option.handler_void || truthy) {
                run_handler(option, params, truthy, value, "");
            }
        } catch (const std::exception & error) {
            throw usage_error(std::string("environment variable '") + option.env + "' is '" +
                              shown(value) + "': " + reason(error));
        }
    }
}

// One option on the command line and where it lies there.
struct use_of_option {
    const common_arg * option;
    bool positive;
    int first, values; // argv[first], then `values` values
};

static std::vector<use_of_option> find_uses(const std::vector<common_arg> & options, int argc,
                                            char ** argv) {
    std::map<std::string, std::pair<const common_arg *, bool>> by_name;
    for (const auto & option : options) {
        for (const char * arg : option.args) {
            by_name[arg] = {&option, true};
        }
        for (const char * arg : option.args_neg) {
            by_name[arg] = {&option, false};
        }
    }
    std::vector<use_of_option> uses;
    for (int i = 1; i < argc; i++) {
        std::string name = argv[i];
        if (name.compare(0, 2, "--") == 0) {
            std::replace(name.begin(), name.end(), '_', '-');
        }
        const auto found = by_name.find(name);
        if (found == by_name.end()) {
            throw usage_error("unknown option '" + name + "'");
        }
        const auto * option = found->second.first;
        const int values = rpaged_values_of(*option);
        if (i + values >= argc) {
            throw usage_error("option '" + name + "' needs a value");
        }
        if (prints_and_exits(*option)) {
            throw usage_error("option '" + name + "' was not taken out before parsing");
        }
        uses.push_back({option, found->second.second, i, values});
        i += values;
    }
    return uses;
}

// Upstream finds a wrong pattern only when it lays out the model, and does not name it.
static void check_overrides(const common_arg & option, const std::string & value) {
    if (!is_one_of(option, {"--override-tensor"})) {
        return;
    }
    for (const auto & entry : string_split<std::string>(value, ',')) {
        const auto end = entry.find('=');
        if (end == std::string::npos) {
            throw std::runtime_error("give PATTERN=BUFFER, several with commas between");
        }
        const std::string pattern = entry.substr(0, end);
        try {
            std::regex check(pattern);
        } catch (const std::regex_error &) {
            throw std::runtime_error("'" + pattern + "' is no regular expression");
        }
    }
}

// Upstream drops the names of samplers that it does not know.
static void check_samplers(const common_arg & option, const std::string & value) {
    if (is_one_of(option, {"--samplers"})) {
        for (const auto & name : string_split<std::string>(value, ';')) {
            if (!name.empty() && common_sampler_types_from_names({name}).empty()) {
                throw std::runtime_error("there is no sampler '" + name + "'");
            }
        }
    }
    if (is_one_of(option, {"--sampler-seq"})) {
        for (const char letter : value) {
            if (common_sampler_types_from_chars(std::string(1, letter)).empty()) {
                throw std::runtime_error(std::string("there is no sampler '") + letter + "'");
            }
        }
    }
}

// Throws what an option is refused for, which `check` throws, with the option in front.
template <typename F>
static void blame_use(const use_of_option & use, char ** argv, F check) {
    const std::string first = use.values > 0 ? argv[use.first + 1] : "";
    try {
        rpaged_blame(use.option->args.front(), first);
        check(first);
    } catch (const std::exception & error) {
        const std::string given = use.values > 0 ? " " + shown(first) : "";
        throw usage_error(std::string("option '") + argv[use.first] + given + "': " +
                          reason(error));
    }
}

static void rehearse_arguments(const std::vector<use_of_option> & uses, char ** argv,
                               common_params & params) {
    // The option whose grammar counts: the last one, as far as it can be read here.
    const use_of_option * grammar = nullptr;
    for (const auto & use : uses) {
        blame_use(use, argv, [&](const std::string & first) {
            if (is_one_of(*use.option, {"--n-cpu-moe", "--n-cpu-ffn"}) && std::stoi(first) > 9999) {
                throw std::runtime_error("no model has so many layers");
            }
            check_samplers(*use.option, first);
            check_overrides(*use.option, first);
            const bool once = reads_once(*use.option, first);
            if (!once) {
                const std::string second = use.values > 1 ? argv[use.first + 2] : "";
                run_handler(*use.option, params, use.positive, first, second);
            }
            if (is_one_of(*use.option, {"--grammar", "--grammar-file", "--json-schema",
                                        "--json-schema-file"})) {
                grammar = once ? nullptr : &use;
            }
        });
    }
    if (grammar) {
        blame_use(*grammar, argv, [&](const std::string &) {
            rpaged_check_grammar(common_grammar_value(params.sampling.grammar));
        });
    }
}

static bool is_remote(const common_params & params) {
    return !params.model.hf_repo.empty() || !params.model.url.empty() ||
           !params.model.docker_repo.empty();
}

// Whether the option alone says where the model is, here or elsewhere.
static bool names_model(const common_arg & option) {
    return is_one_of(option, {"--model", "--model-url", "--docker-repo", "--hf-repo",
                              "--hf-file"});
}

// ---- parsing ---------------------------------------------------------------------------------

// Environment variables taken away for the length of a scope.
struct hidden_variables {
    std::vector<std::pair<std::string, std::string>> values;
    void hide(const char * name) {
        const char * value = name ? std::getenv(name) : nullptr;
        if (value) {
            values.emplace_back(name, value);
            common_set_env(name, "");
        }
    }
    ~hidden_variables() {
        for (const auto & entry : values) {
            common_set_env(entry.first, entry.second);
        }
    }
};

static void rehearse(const std::vector<common_arg> & options,
                     const std::vector<use_of_option> & uses, char ** argv,
                     common_params & scratch) {
    rehearse_config_files(scratch);
    rehearse_environment(options, scratch);
    rehearse_arguments(uses, argv, scratch);
    rpaged_blame("", "");
    if (scratch.prompt_cache_all && (scratch.interactive || scratch.interactive_first)) {
        throw usage_error("'--prompt-cache-all' cannot be combined with interactive mode");
    }
    if (!scratch.chat_template.empty() &&
        !common_chat_verify_template(scratch.chat_template, scratch.use_jinja)) {
        rpaged_blame("--chat-template", scratch.chat_template);
        throw usage_error("the chat template (--chat-template) is not one that llama.cpp supports" +
                          std::string(scratch.use_jinja ? "" : "; try --jinja"));
    }
    rpaged_check_draft_file(scratch);
    // Where the model is elsewhere this downloads it, and sets its path. With a progress bar
    // nothing else may be said; what went wrong is in the sentence at the end.
    common_log_set_verbosity_thold(rpaged_downloads_are_watched() ? -1 : scratch.verbosity);
    rpaged_get_models(scratch);
    const auto & draft = scratch.speculative.draft.mparams;
    if (draft.path.empty() && !draft.empty()) {
        throw std::runtime_error("could not get the draft model '" +
                                 (draft.hf_repo.empty() ? draft.url : draft.hf_repo) +
                                 "'; see --spec-draft-hf");
    }
    if (scratch.model.path.empty()) {
        throw usage_error("no model given; name one with -m FILE, or try --demo");
    }
}

// What only llama-cli has goes into `params` before llama-completion's parser, which does
// not know it; the parser completes what is there.
static void apply_extras(const std::vector<common_arg> & options,
                         const std::vector<use_of_option> & uses, char ** argv,
                         const common_params & rehearsed, common_params & params) {
    for (const auto & option : options) {
        std::string value;
        if (rpaged_is_extra(option) && option.get_value_from_env(value)) {
            const bool truthy = common_arg_utils::is_truthy(value);
            if (!option.handler_void || truthy) {
                run_handler(option, params, truthy, value, "");
            }
        }
    }
    for (const auto & use : uses) {
        if (rpaged_is_extra(*use.option)) {
            run_handler(*use.option, params, use.positive,
                        use.values > 0 ? argv[use.first + 1] : "",
                        use.values > 1 ? argv[use.first + 2] : "");
        }
    }
    // A draft model from elsewhere has been fetched by the rehearsal.
    params.speculative = rehearsed.speculative;
    auto & draft = params.speculative.draft.mparams;
    if (!draft.path.empty()) {
        const std::string path = draft.path;
        draft = {};
        draft.path = path;
    }
}

static std::unique_ptr<rpaged_params> parse(int argc, char ** argv, const char * const * names) {
    hidden_variables hidden;
    for (; *names; names++) {
        hidden.hide(*names);
    }
    rpaged_blame("", "");
    common_params scratch;
    const auto options = rpaged_all_options(scratch);
    const auto uses = find_uses(options, argc, argv);

    // Warnings of the handlers would otherwise be printed twice.
    common_log_set_verbosity_thold(-1);
    try {
        rehearse(options, uses, argv, scratch);
    } catch (...) {
        common_log_set_verbosity_thold(LOG_DEFAULT_LLAMA);
        throw;
    }
    common_log_set_verbosity_thold(LOG_DEFAULT_LLAMA);

    // The parser proper gets a local path even where the model was elsewhere: a second
    // look at the network could fail, and the parser would end the process.
    std::vector<char *> args = {argv[0]};
    const bool remote = is_remote(scratch);
    for (const auto & use : uses) {
        if (!rpaged_is_extra(*use.option) && !(remote && names_model(*use.option))) {
            args.insert(args.end(), argv + use.first, argv + use.first + 1 + use.values);
        }
    }
    std::string flag = "-m", path = scratch.model.path;
    if (remote) {
        args.push_back(flag.data());
        args.push_back(path.data());
        for (const auto & option : options) {
            if (names_model(option)) {
                hidden.hide(option.env);
            }
        }
    }
    args.push_back(nullptr);
    auto result = std::make_unique<rpaged_params>();
    apply_extras(options, uses, argv, scratch, result->params);
    // The parser's help shows this one's default, and it aborts when that is a number.
    auto & draft_layers = result->params.speculative.draft.n_gpu_layers;
    const int32_t given = std::exchange(draft_layers, -1);
    if (!common_params_parse((int) args.size() - 1, args.data(), result->params, RPAGED_EXAMPLE)) {
        throw usage_error("llama.cpp's parser refused the command line");
    }
    draft_layers = given;
    return result;
}

extern "C" int32_t rpaged_params_parse(int32_t argc, char ** argv, const char * const * hidden,
                                       rpaged_params ** out) {
    *out = nullptr;
    return rpaged_guard<int32_t>(RPAGED_FAILED, [&]() -> int32_t {
        try {
            *out = parse(argc, argv, hidden).release();
            return RPAGED_OK;
        } catch (const usage_error & error) {
            rpaged_fail(error.what());
            return RPAGED_USAGE;
        }
    });
}

extern "C" void rpaged_params_free(rpaged_params * params) {
    delete params;
}

// ---- getters and setters ---------------------------------------------------------------------

extern "C" int32_t rpaged_params_settings(const rpaged_params * handle, rpaged_settings * out) {
    return rpaged_guard<int32_t>(RPAGED_FAILED, [&]() -> int32_t {
        const common_params & p = handle->params;
        *out = {};
        out->n_predict         = p.n_predict;
        out->n_ctx             = p.n_ctx;
        out->n_batch           = p.n_batch;
        out->n_ubatch          = p.n_ubatch;
        out->n_keep            = p.n_keep;
        out->n_parallel        = p.n_parallel;
        out->n_gpu_layers      = p.n_gpu_layers;
        out->n_print           = p.n_print;
        out->mirostat          = p.sampling.mirostat;
        out->grp_attn_n        = p.grp_attn_n;
        out->conversation_mode = p.conversation_mode;
        out->numa              = p.numa;
        out->load_mode         = p.load_mode;
        out->lazy_mode         = p.lazy_mode;
        out->split_mode        = p.split_mode;
        out->n_threads         = p.cpuparams.n_threads;
        out->n_threads_batch   = p.cpuparams_batch.n_threads;
        out->verbosity         = p.verbosity;
        out->antiprompts       = (int32_t) p.antiprompt.size();
        out->loras             = (int32_t) p.lora_adapters.size();
        out->control_vectors   = (int32_t) p.control_vectors.size();
        out->tensor_overrides  = (int32_t) std::count_if(
            p.tensor_buft_overrides.begin(), p.tensor_buft_overrides.end(),
            [](const llama_model_tensor_buft_override & entry) { return entry.pattern != nullptr; });
        out->kv_overrides      = (int32_t) std::count_if(
            p.kv_overrides.begin(), p.kv_overrides.end(),
            [](const llama_model_kv_override & entry) { return entry.key[0] != '\0'; });
        out->devices           = (int32_t) p.devices.size();
        out->rope_freq_base    = p.rope_freq_base;
        out->rope_freq_scale   = p.rope_freq_scale;
        out->interactive       = p.interactive || p.interactive_first;
        out->embedding         = p.embedding;
        out->escape            = p.escape;
        out->special           = p.special;
        out->display_prompt    = p.display_prompt;
        out->verbose_prompt    = p.verbose_prompt;
        out->use_color         = p.use_color;
        out->use_jinja         = p.use_jinja;
        out->ctx_shift         = p.ctx_shift;
        out->warmup            = p.warmup;
        out->fit               = p.fit_params;
        out->kv_offload        = !p.no_kv_offload;
        return RPAGED_OK;
    });
}

extern "C" void rpaged_params_set_n_ctx(rpaged_params * handle, int32_t n_ctx) {
    handle->params.n_ctx = n_ctx;
}

extern "C" void rpaged_params_set_batches(rpaged_params * handle, int32_t n_batch, int32_t n_ubatch) {
    handle->params.n_batch  = n_batch;
    handle->params.n_ubatch = n_ubatch;
}

extern "C" rpaged_params * rpaged_params_copy(const rpaged_params * handle) {
    return rpaged_guard<rpaged_params *>(nullptr, [&] { return new rpaged_params(*handle); });
}

extern "C" rpaged_bytes rpaged_params_text(const rpaged_params * handle, rpaged_text text) {
    return rpaged_guard(rpaged_bytes{}, [&] {
        const common_params & p = handle->params;
        switch (text) {
            case RPAGED_TEXT_MODEL_PATH:    return rpaged_own(p.model.path);
            case RPAGED_TEXT_PROMPT:        return rpaged_own(p.prompt);
            case RPAGED_TEXT_CHAT_TEMPLATE: return rpaged_own(p.chat_template);
            case RPAGED_TEXT_PROMPT_CACHE:  return rpaged_own(p.path_prompt_cache);
            case RPAGED_TEXT_SAMPLING:      return rpaged_own(p.sampling.print());
            case RPAGED_TEXT_SYSTEM_INFO:   return rpaged_own(common_params_get_system_info(p));
        }
        throw std::invalid_argument("no such text");
    });
}

extern "C" rpaged_bytes rpaged_params_antiprompt(const rpaged_params * handle, size_t index) {
    return rpaged_guard(rpaged_bytes{},
                        [&] { return rpaged_own(handle->params.antiprompt.at(index)); });
}

extern "C" void rpaged_params_on_progress(rpaged_params * handle, bool (*callback)(float, void *),
                                          void * data) {
    handle->params.load_progress_callback           = callback;
    handle->params.load_progress_callback_user_data = data;
}

// ---- the machine and the cache ---------------------------------------------------------------

extern "C" rpaged_bytes rpaged_cache_list(void) {
    return rpaged_guard(rpaged_bytes{}, [] {
        const auto models = common_list_cached_models();
        std::string text = string_format("number of models in cache: %zu\n", models.size());
        for (size_t i = 0; i < models.size(); i++) {
            text += string_format("%4zu. %s\n", i + 1, models[i].to_string().c_str());
        }
        return rpaged_own(text);
    });
}

extern "C" rpaged_bytes rpaged_build_info(void) {
    return rpaged_guard(rpaged_bytes{}, [] {
        return rpaged_own(string_format("llama.cpp %s (build %d, commit %s), built with %s for %s",
                                        llama_version(), llama_build_number(), llama_commit(),
                                        llama_compiler(), llama_build_target()));
    });
}
