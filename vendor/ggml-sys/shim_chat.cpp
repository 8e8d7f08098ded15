// Chat templates and what a model answers to them: doors to llama.cpp's chat engine.
#include "shim_internal.h"

#include "chat.h"
#include "common.h"
#include "llama.h"
#include "sampling.h"

#include <map>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

// Templates with all that the command line says about their use; refers to nothing.
struct rpaged_chat {
    common_chat_templates_ptr templates;
    std::map<std::string, std::string> kwargs;
    common_reasoning_format reasoning_format = COMMON_REASONING_FORMAT_NONE;
    bool use_jinja       = true;
    bool pure_content    = false;
    bool enable_thinking = false;
};

// One turn: what the model is to read, and how its answer is to be read.
struct rpaged_turn {
    common_chat_params        rendered;
    common_chat_parser_params parser;
};

static common_chat_msg message_of(const rpaged_message & message) {
    common_chat_msg result;
    result.role.assign(message.role.data, message.role.size);
    result.content.assign(message.content.data, message.content.size);
    result.reasoning_content.assign(message.reasoning.data, message.reasoning.size);
    return result;
}

static std::vector<common_chat_msg> messages_of(const rpaged_message * messages, size_t count) {
    std::vector<common_chat_msg> result;
    result.reserve(count);
    for (size_t i = 0; i < count; i++) {
        result.push_back(message_of(messages[i]));
    }
    return result;
}

// What the engine says, without the excerpt of the template that stands in the middle.
static std::string template_reason(const std::string & said) {
    const std::string tags[] = {"\nError: ", "Jinja Exception: "};
    std::string reason = said;
    for (const auto & tag : tags) {
        const auto at = reason.rfind(tag);
        if (at != std::string::npos) {
            reason = reason.substr(at + tag.size());
        }
    }
    return rpaged_one_line(reason);
}

// Runs what renders a template; its failures say that it was the template's.
template <typename F> static auto rendering(F && body) {
    try {
        return body();
    } catch (const std::bad_alloc &) {
        throw;
    } catch (const std::exception & error) {
        throw std::runtime_error("the chat template failed: " + template_reason(error.what()));
    }
}

// Upstream throws a copy of the base class, which has lost the reason.
static common_chat_templates_ptr templates_of(const llama_model * model, const std::string & given) {
    try {
        return common_chat_templates_init(model, given);
    } catch (const std::exception & error) {
        const char * own = llama_model_chat_template(model, nullptr);
        const std::string source = given.empty() && own ? own : given;
        try {
            common_chat_template probe(source, "", "");
        } catch (const std::exception & reason) {
            throw std::runtime_error(std::string("the chat template cannot be read: ") +
                                     template_reason(reason.what()));
        }
        throw std::runtime_error(std::string("the chat template cannot be read: ") + error.what());
    }
}

// Whether the model is to think: where the template knows of it, unless switched off.
static bool is_thinking(const rpaged_chat & chat, int enable_reasoning) {
    const auto given = chat.kwargs.find("enable_thinking");
    if (given != chat.kwargs.end()) {
        if (given->second == "true" || given->second == "false") {
            return given->second == "true";
        }
        throw std::invalid_argument("'enable_thinking' of --chat-template-kwargs must be true or "
                                    "false, without quotes");
    }
    return enable_reasoning != 0 && chat.use_jinja && rendering([&] {
        return common_chat_templates_support_enable_thinking(chat.templates.get());
    });
}

extern "C" rpaged_chat * rpaged_chat_new(const rpaged_params * handle, const llama_model * model) {
    return rpaged_guard<rpaged_chat *>(nullptr, [&]() -> rpaged_chat * {
        const common_params & p = handle->params;
        auto chat = std::make_unique<rpaged_chat>();
        chat->templates        = templates_of(model, p.chat_template);
        chat->kwargs           = p.default_template_kwargs;
        chat->reasoning_format = p.reasoning_format;
        chat->use_jinja        = p.use_jinja;
        chat->pure_content     = p.force_pure_content_parser;
        chat->enable_thinking  = is_thinking(*chat, p.enable_reasoning);
        return chat.release();
    });
}

extern "C" void rpaged_chat_free(rpaged_chat * chat) {
    delete chat;
}

extern "C" int32_t rpaged_chat_settings_of(const rpaged_params * handle,
                                           rpaged_chat_settings * out) {
    return rpaged_guard<int32_t>(RPAGED_FAILED, [&]() -> int32_t {
        const common_params & p = handle->params;
        *out = {};
        out->enable_template  = p.enable_chat_template;
        out->single_turn      = p.single_turn;
        out->multiline_input  = p.multiline_input;
        out->show_timings     = p.show_timings;
        out->simple_io        = p.simple_io;
        out->input_prefix_bos = p.input_prefix_bos;
        return RPAGED_OK;
    });
}

extern "C" rpaged_bytes rpaged_chat_text(const rpaged_params * handle, rpaged_chat_text_kind kind) {
    return rpaged_guard(rpaged_bytes{}, [&] {
        const common_params & p = handle->params;
        switch (kind) {
            case RPAGED_CHAT_SYSTEM_PROMPT: return rpaged_own(p.system_prompt);
            case RPAGED_CHAT_INPUT_PREFIX:  return rpaged_own(p.input_prefix);
            case RPAGED_CHAT_INPUT_SUFFIX:  return rpaged_own(p.input_suffix);
        }
        throw std::invalid_argument("no such text");
    });
}

extern "C" bool rpaged_chat_is_explicit(const rpaged_chat * chat) {
    return rpaged_guard(false, [&] {
        return common_chat_templates_was_explicit(chat->templates.get());
    });
}

extern "C" rpaged_bytes rpaged_chat_example(const rpaged_chat * chat) {
    return rpaged_guard(rpaged_bytes{}, [&] {
        return rpaged_own(rendering([&] {
            return common_chat_format_example(chat->templates.get(), chat->use_jinja, chat->kwargs);
        }));
    });
}

extern "C" rpaged_bytes rpaged_chat_format_single(const rpaged_chat * chat,
                                                  const rpaged_message * past, size_t count,
                                                  const rpaged_message * message,
                                                  bool add_assistant) {
    return rpaged_guard(rpaged_bytes{}, [&] {
        return rpaged_own(rendering([&] {
            try {
                return common_chat_format_single(chat->templates.get(), messages_of(past, count),
                                                 message_of(*message), add_assistant,
                                                 chat->use_jinja);
            } catch (const std::out_of_range &) {
                throw std::runtime_error("it changes earlier messages when one is added");
            }
        }));
    });
}

extern "C" rpaged_bytes rpaged_chat_format_all(const rpaged_chat * chat,
                                               const rpaged_message * messages, size_t count,
                                               bool add_generation_prompt) {
    return rpaged_guard(rpaged_bytes{}, [&] {
        common_chat_templates_inputs inputs;
        inputs.use_jinja             = chat->use_jinja;
        inputs.messages              = messages_of(messages, count);
        inputs.add_generation_prompt = add_generation_prompt;
        inputs.force_pure_content    = chat->pure_content;
        return rpaged_own(rendering([&] {
            return common_chat_templates_apply(chat->templates.get(), inputs).prompt;
        }));
    });
}

extern "C" rpaged_turn * rpaged_turn_new(const rpaged_chat * chat, const rpaged_message * messages,
                                         size_t count) {
    return rpaged_guard<rpaged_turn *>(nullptr, [&]() -> rpaged_turn * {
        common_chat_templates_inputs inputs;
        inputs.use_jinja             = chat->use_jinja;
        inputs.messages              = messages_of(messages, count);
        inputs.add_generation_prompt = true;
        inputs.reasoning_format      = chat->reasoning_format;
        inputs.enable_thinking       = chat->enable_thinking;
        inputs.chat_template_kwargs  = chat->kwargs;
        inputs.force_pure_content    = chat->pure_content;
        auto turn = std::make_unique<rpaged_turn>();
        turn->rendered = rendering([&] {
            return common_chat_templates_apply(chat->templates.get(), inputs);
        });
        turn->parser   = common_chat_parser_params(turn->rendered);
        turn->parser.reasoning_format = chat->reasoning_format;
        // An answer that is shown while it is made keeps its tags in this format.
        turn->parser.reasoning_in_content =
            chat->reasoning_format == COMMON_REASONING_FORMAT_DEEPSEEK_LEGACY;
        if (!turn->rendered.parser.empty()) {
            turn->parser.parser.load(turn->rendered.parser);
        }
        return turn.release();
    });
}

extern "C" void rpaged_turn_free(rpaged_turn * turn) {
    delete turn;
}

extern "C" rpaged_bytes rpaged_turn_text(const rpaged_turn * turn, rpaged_turn_text_kind kind,
                                         size_t index) {
    return rpaged_guard(rpaged_bytes{}, [&] {
        const common_chat_params & r = turn->rendered;
        switch (kind) {
            case RPAGED_TURN_PROMPT:            return rpaged_own(r.prompt);
            case RPAGED_TURN_GENERATION_PROMPT: return rpaged_own(r.generation_prompt);
            case RPAGED_TURN_THINKING_START:    return rpaged_own(r.thinking_start_tag);
            case RPAGED_TURN_THINKING_END:      return rpaged_own(r.thinking_end_tags.at(index));
            case RPAGED_TURN_STOP:              return rpaged_own(r.additional_stops.at(index));
        }
        throw std::invalid_argument("no such text");
    });
}

extern "C" size_t rpaged_turn_count(const rpaged_turn * turn, rpaged_turn_text_kind kind) {
    switch (kind) {
        case RPAGED_TURN_THINKING_END: return turn->rendered.thinking_end_tags.size();
        case RPAGED_TURN_STOP:         return turn->rendered.additional_stops.size();
        default:                       return 1;
    }
}

extern "C" int32_t rpaged_turn_parse(const rpaged_turn * turn, const char * text, size_t size,
                                     bool is_partial, rpaged_answer * out) {
    *out = {};
    return rpaged_guard<int32_t>(RPAGED_FAILED, [&]() -> int32_t {
        const auto message = common_chat_parse(std::string(text, size), is_partial, turn->parser);
        out->content = rpaged_own(message.render_content());
        try {
            out->reasoning = rpaged_own(message.reasoning_content);
        } catch (const std::bad_alloc &) {
            rpaged_bytes_free(out->content);
            *out = {};
            throw;
        }
        return RPAGED_OK;
    });
}

extern "C" int32_t rpaged_turn_begin(const rpaged_turn * turn, rpaged_session * session,
                                     uint32_t attempt) {
    return rpaged_guard<int32_t>(RPAGED_FAILED, [&]() -> int32_t {
        const auto * vocab = llama_model_get_vocab(rpaged_session_model(session));
        const common_chat_params & r = turn->rendered;
        common_params_sampling sampling = rpaged_session_params(session).sampling;
        if (sampling.seed != LLAMA_DEFAULT_SEED) {
            sampling.seed += attempt;
        }
        sampling.generation_prompt = r.generation_prompt;
        if (!r.thinking_end_tags.empty() && !r.thinking_start_tag.empty()) {
            const auto tokens = [&](const std::string & text) {
                return common_tokenize(vocab, text, false, true);
            };
            sampling.reasoning_budget_start = tokens(r.thinking_start_tag);
            sampling.reasoning_budget_end.clear();
            for (const auto & tag : r.thinking_end_tags) {
                sampling.reasoning_budget_end.push_back(tokens(tag));
            }
            sampling.reasoning_budget_forced =
                tokens(sampling.reasoning_budget_message + r.thinking_end_tags.front());
        }
        rpaged_session_use_sampling(session, sampling);
        return RPAGED_OK;
    });
}
