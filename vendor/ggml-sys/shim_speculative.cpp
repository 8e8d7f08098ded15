// Drafting: doors to llama.cpp's engine of speculative decoding.
//
// The engine proposes tokens; whether they are right, the session's own model says. What
// the engine is told of is what the session's context holds, so that both always agree.
#include "shim_internal.h"

#include "../src/llama-ext.h" // what a context takes: llama_get_memory_breakdown
#include "common.h"
#include "gguf.h"
#include "llama.h"
#include "speculative.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <memory>
#include <stdexcept>
#include <vector>

// ---- settings ----------------------------------------------------------------------------

void rpaged_check_draft_file(const common_params & params) {
    const auto & draft = params.speculative.draft.mparams;
    if (draft.path.empty() || !draft.hf_repo.empty() || !draft.url.empty()) {
        return;
    }
    std::error_code ignored;
    if (!std::filesystem::is_regular_file(draft.path, ignored)) {
        throw std::runtime_error("the draft model '" + draft.path +
                                 "' is no file; see --spec-draft-model");
    }
    // Upstream's parser asks the header of a draft model for this, and aborts without it.
    const auto file = rpaged_read_header(draft.path);
    if (!file) {
        throw std::runtime_error("the draft model '" + draft.path +
                                 "' is no GGUF file, or damaged; see --spec-draft-model");
    }
    const auto key = gguf_find_key(file.get(), "general.architecture");
    if (key < 0 || gguf_get_kv_type(file.get(), key) != GGUF_TYPE_STRING) {
        return;
    }
    const std::string blocks = std::string(gguf_get_val_str(file.get(), key)) + ".block_count";
    const auto count = gguf_find_key(file.get(), blocks.c_str());
    if (count < 0 || gguf_get_kv_type(file.get(), count) != GGUF_TYPE_UINT32) {
        throw std::runtime_error("the draft model '" + draft.path +
                                 "' does not say how many layers it has");
    }
}

// The kinds asked for. A draft model alone asks for the kind that takes any model.
static std::vector<common_speculative_type> kinds_of(const common_params_speculative & params) {
    std::vector<common_speculative_type> kinds;
    for (const auto type : params.types) {
        if (type != COMMON_SPECULATIVE_TYPE_NONE) {
            kinds.push_back(type);
        }
    }
    if (kinds.empty() && params.types.size() == 1 && params.has_dft()) {
        kinds.push_back(COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE);
    }
    return kinds;
}

extern "C" int32_t rpaged_params_drafting(const rpaged_params * handle,
                                          rpaged_drafting_settings * out) {
    return rpaged_guard<int32_t>(RPAGED_FAILED, [&]() -> int32_t {
        const auto & params = handle->params.speculative;
        *out = {};
        for (const auto kind : kinds_of(params)) {
            if (kind == COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE) {
                out->with_model = true;
            } else if (kind >= COMMON_SPECULATIVE_TYPE_NGRAM_SIMPLE) {
                out->without_model = true;
            } else {
                out->special = true;
            }
        }
        out->has_model       = params.has_dft();
        out->probabilistic   = params.draft.probabilistic;
        out->synthetic       = params.has_synth();
        out->draft_max       = params.draft.n_max;
        out->threads         = params.draft.cpuparams.n_threads;
        out->threads_batch   = params.draft.cpuparams_batch.n_threads;
        out->backend_sampling = handle->params.sampling.backend_sampling;
        return RPAGED_OK;
    });
}

extern "C" rpaged_bytes rpaged_params_draft_path(const rpaged_params * handle) {
    return rpaged_guard(rpaged_bytes{}, [&] {
        return rpaged_own(handle->params.speculative.draft.mparams.path);
    });
}

extern "C" rpaged_bytes rpaged_params_draft_kinds(const rpaged_params * handle) {
    return rpaged_guard(rpaged_bytes{}, [&] {
        return rpaged_own(common_speculative_type_name_str(kinds_of(handle->params.speculative)));
    });
}

// ---- the draft model ---------------------------------------------------------------------

// How the draft model is loaded; `resident`: by the CPU, whatever the other model uses.
static common_params draft_params(const common_params & params, bool resident) {
    common_params result = common_base_params_to_speculative(params);
    result.n_parallel                        = 1;
    result.n_outputs_max                     = 1;
    result.load_progress_callback            = nullptr;
    result.load_progress_callback_user_data  = nullptr;
    if (resident) {
        result.devices         = {nullptr};
        result.n_gpu_layers    = 0;
        result.tensor_buft_overrides.clear();
        result.no_op_offload   = true;
        // The paged model's way of reading its file is none of the draft model's business.
        result.load_mode       = LLAMA_LOAD_MODE_NONE;
    }
    return result;
}

struct draft_model {
    llama_model_ptr   model;
    llama_context_ptr context; // freed before its model
};

static draft_model load(const common_params & params, llama_context * target, bool resident,
                        bool only_measure) {
    common_params own = draft_params(params, resident);
    auto model_params   = common_model_params_to_llama(own);
    auto context_params = common_context_params_to_llama(own);
    context_params.n_ctx    = llama_n_ctx(target);
    context_params.n_rs_seq = 0;
    if (only_measure) {
        model_params.no_alloc  = true;
        model_params.load_mode = LLAMA_LOAD_MODE_NONE;
    }
    draft_model result;
    result.model.reset(llama_model_load_from_file(own.model.path.c_str(), model_params));
    if (!result.model) {
        return result; // the reason is in the log
    }
    const auto * model = result.model.get();
    if (llama_model_has_encoder(model) || !llama_model_has_decoder(model)) {
        throw std::runtime_error("a model with an encoder cannot draft");
    }
    if (llama_model_is_recurrent(model) || llama_model_is_hybrid(model)) {
        throw std::runtime_error(
            "the draft model's memory cannot forget a part of the context, so it cannot draft");
    }
    const auto has_texts = [](const llama_model * one) {
        return llama_vocab_type(llama_model_get_vocab(one)) != LLAMA_VOCAB_TYPE_NONE;
    };
    if (!has_texts(model) || !has_texts(llama_get_model(target))) {
        throw std::runtime_error("a model without a vocabulary cannot be compared with another");
    }
    if (!common_speculative_are_compatible(llama_get_model(target), model)) {
        throw std::runtime_error("the draft model has another vocabulary than the model");
    }
    result.context.reset(llama_init_from_model(result.model.get(), context_params));
    return result;
}

extern "C" uint64_t rpaged_draft_model_bytes(rpaged_session * session, bool resident) {
    return rpaged_guard<uint64_t>(0, [&]() -> uint64_t {
        rpaged_fail("");
        rpaged_log_forget_error();
        const auto & params = rpaged_session_params(session);
        const auto draft = load(params, rpaged_session_context(session), resident, true);
        if (!draft.context) {
            return 0;
        }
        uint64_t bytes = 0;
        for (const auto & [type, part] : llama_get_memory_breakdown(draft.context.get())) {
            bytes += part.total();
        }
        return bytes;
    });
}

// ---- drafting ----------------------------------------------------------------------------

struct rpaged_drafter {
    common_params_speculative params;
    // Behind the context, which must be gone when they go.
    rpaged_pools pools;
    draft_model draft;
    common_speculative_ptr engine;
    int32_t n_vocab = 0;

    // What the session's context holds, from the position `first` on.
    llama_tokens history;
    llama_pos    first = 0;
    llama_tokens result;

    llama_pos end() const { return first + (llama_pos) history.size(); }
    llama_memory_t memory() const { return llama_get_memory(draft.context.get()); }
};

static void attach_pools(rpaged_drafter & drafter) {
    const auto & params = drafter.params.draft;
    auto & pools = drafter.pools;
    pools.start(params.cpuparams, params.cpuparams_batch);
    if (!pools.decode) {
        throw std::runtime_error("the draft model's threads could not be started");
    }
    llama_attach_threadpool(drafter.draft.context.get(), pools.decode.get(), pools.for_batches());
}

extern "C" rpaged_drafter * rpaged_drafter_new(rpaged_session * session, bool resident) {
    return rpaged_guard<rpaged_drafter *>(nullptr, [&]() -> rpaged_drafter * {
        rpaged_fail("");
        rpaged_log_forget_error();
        const auto & params = rpaged_session_params(session);
        auto * target = rpaged_session_context(session);
        auto drafter = std::make_unique<rpaged_drafter>();
        drafter->params = params.speculative;
        drafter->params.types = kinds_of(params.speculative);
        drafter->n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(llama_get_model(target)));
        const auto & types = drafter->params.types;
        if (std::count(types.begin(), types.end(), COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE) > 0) {
            drafter->draft = load(params, target, resident, false);
            if (!drafter->draft.context) {
                return nullptr; // the reason is in the log
            }
            drafter->params.draft.ctx_tgt = target;
            drafter->params.draft.ctx_dft = drafter->draft.context.get();
            attach_pools(*drafter);
        }
        // One ubatch checks a draft. This kind judges itself by how much of what it drafted
        // was right, so it must not draft what nobody looks at.
        const int32_t most = std::max(1, (int32_t) llama_n_ubatch(target) - 1);
        auto & mod = drafter->params.ngram_mod;
        mod.n_max = std::min(mod.n_max, most);
        drafter->engine.reset(common_speculative_init(drafter->params, 1));
        if (!drafter->engine) {
            throw std::runtime_error("llama.cpp made no drafting of what was asked for");
        }
        common_speculative_begin(drafter->engine.get(), 0, drafter->history);
        return drafter.release();
    });
}

extern "C" void rpaged_drafter_set_abort(rpaged_drafter * drafter, bool (*callback)(void *)) {
    if (drafter->draft.context) {
        llama_set_abort_callback(drafter->draft.context.get(), callback, nullptr);
    }
}

extern "C" void rpaged_drafter_free(rpaged_drafter * drafter) {
    delete drafter;
}

// Has the draft model forget what lies at `from` and later.
static void forget(rpaged_drafter & drafter, llama_pos from) {
    if (drafter.draft.context && !llama_memory_seq_rm(drafter.memory(), 0, from, -1)) {
        llama_memory_clear(drafter.memory(), false);
    }
}

extern "C" int32_t rpaged_drafter_hold(rpaged_drafter * drafter, int32_t from,
                                       const int32_t * tokens, size_t count) {
    return rpaged_guard<int32_t>(RPAGED_FAILED, [&]() -> int32_t {
        const bool is_next = from == drafter->end();
        if (!is_next) {
            const bool is_known = from >= drafter->first && from < drafter->end();
            if (is_known) {
                drafter->history.resize(from - drafter->first);
            } else {
                // What lies before it came from somewhere else.
                drafter->history.clear();
                drafter->first = from;
            }
            forget(*drafter, is_known ? from : 0);
        }
        drafter->history.insert(drafter->history.end(), tokens, tokens + count);
        if (!is_next || count > 1) {
            // The maps of some kinds must know where a history ends that became shorter.
            common_speculative_begin(drafter->engine.get(), 0, drafter->history);
        }
        return RPAGED_OK;
    });
}

extern "C" int32_t rpaged_drafter_shift(rpaged_drafter * drafter, int32_t keep, int32_t discard) {
    return rpaged_guard<int32_t>(RPAGED_FAILED, [&]() -> int32_t {
        auto & history = drafter->history;
        const llama_pos end = drafter->end();
        if (keep < drafter->first || keep + discard > end) {
            // A part of what moves is not known: drafting begins anew.
            history.clear();
            drafter->first = std::max(0, end - discard);
            forget(*drafter, 0);
        } else {
            const auto at = history.begin() + (keep - drafter->first);
            history.erase(at, at + discard);
            if (drafter->draft.context) {
                auto memory = drafter->memory();
                if (llama_memory_can_shift(memory) &&
                    llama_memory_seq_rm(memory, 0, keep, keep + discard)) {
                    llama_memory_seq_add(memory, 0, keep + discard, end, -discard);
                } else {
                    llama_memory_clear(memory, false);
                }
            }
        }
        common_speculative_begin(drafter->engine.get(), 0, history);
        return RPAGED_OK;
    });
}

// Has the draft model read what the session's context holds and it has not read yet; false
// when it could not.
//
// This is what upstream's common_speculative_process does for a draft model, for no other
// kind does it do anything; but a draft that was right is not read a second time.
static bool catch_up(rpaged_drafter & drafter) {
    auto * context = drafter.draft.context.get();
    if (!context) {
        return true;
    }
    forget(drafter, drafter.end());
    const llama_pos last = llama_memory_seq_pos_max(drafter.memory(), 0);
    llama_pos next = last < 0 ? drafter.first : last + 1;
    const llama_pos batch_max = (llama_pos) llama_n_batch(context);
    while (next < drafter.end()) {
        const llama_pos stop = std::min(drafter.end(), next + batch_max);
        common_batch batch(context);
        for (; next < stop; next++) {
            batch.add(drafter.history[next - drafter.first], next, 0, next + 1 == stop);
        }
        if (llama_process(context, LLAMA_PROCESS_TYPE_DECODE, batch.get()) != 0) {
            llama_memory_clear(drafter.memory(), false);
            return false;
        }
    }
    return true;
}

extern "C" rpaged_tokens rpaged_drafter_draft(rpaged_drafter * drafter, int32_t last,
                                              int32_t most) {
    return rpaged_guard(rpaged_tokens{}, [&] {
        auto & result = drafter->result;
        result.clear();
        if (most > 0 && catch_up(*drafter)) {
            auto & wish = common_speculative_get_draft_params(drafter->engine.get(), 0);
            wish.drafting = true;
            wish.n_max    = most;
            wish.pos0     = drafter->end();
            wish.id_last  = last;
            wish.prompt   = &drafter->history;
            wish.result   = &result;
            common_speculative_draft(drafter->engine.get());
            wish.drafting = false;
        }
        // A draft model may have a few tokens more in its vocabulary.
        const auto alien = std::find_if(result.begin(), result.end(), [&](llama_token token) {
            return token < 0 || token >= drafter->n_vocab;
        });
        result.erase(alien, result.end());
        result.resize(std::min(result.size(), (size_t) std::max(most, 0)));
        return rpaged_own_tokens(result);
    });
}

extern "C" int32_t rpaged_drafter_judge(rpaged_drafter * drafter, int32_t accepted) {
    return rpaged_guard<int32_t>(RPAGED_FAILED, [&]() -> int32_t {
        common_speculative_accept(drafter->engine.get(), 0, (uint16_t) accepted);
        return RPAGED_OK;
    });
}

// ---- checking ----------------------------------------------------------------------------

extern "C" bool rpaged_can_forget(const rpaged_session * session) {
    return rpaged_guard(false, [&] {
        auto * context = rpaged_session_context(const_cast<rpaged_session *>(session));
        const auto * model = llama_get_model(context);
        return llama_get_memory(context) != nullptr && !llama_model_is_recurrent(model) &&
               !llama_model_is_hybrid(model);
    });
}

extern "C" int32_t rpaged_decode_all(rpaged_session * session, const int32_t * tokens,
                                     size_t count) {
    return rpaged_guard<int32_t>(-1, [&]() -> int32_t {
        auto * context = rpaged_session_context(session);
        const auto start = llama_memory_seq_pos_max(llama_get_memory(context), 0) + 1;
        common_batch batch(context);
        for (size_t i = 0; i < count; i++) {
            batch.add(tokens[i], start + (llama_pos) i, 0, true);
        }
        return llama_process(context, LLAMA_PROCESS_TYPE_DECODE, batch.get());
    });
}
