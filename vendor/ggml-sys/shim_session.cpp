// Logging, model, context and sampler: doors to llama.cpp's common library.
#include "shim_internal.h"

#include "common.h"
#include "ggml-cpu.h"
#include "llama.h"
#include "log.h"
#include "sampling.h"

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <vector>

// ---- failures and owned bytes ----------------------------------------------------------

static thread_local std::string LAST_ERROR;

std::string rpaged_one_line(const std::string & text) {
    const std::string blank = " \t\r\n";
    auto start = text.find_first_not_of(blank);
    if (start == std::string::npos) {
        return "";
    }
    if (text.compare(start, 7, "error: ") == 0) {
        start += 7;
    }
    const auto end = text.find('\n', start);
    std::string line = text.substr(start, end == std::string::npos ? end : end - start);
    line.erase(line.find_last_not_of(blank + ".") + 1);
    if (end != std::string::npos && !line.empty() && line.back() == ':') {
        // What it announces stands on the next one.
        const std::string next = rpaged_one_line(text.substr(end));
        return next.empty() ? line : line + " " + next;
    }
    return line;
}

void rpaged_fail(const std::string & text) {
    LAST_ERROR = rpaged_one_line(text);
}

rpaged_bytes rpaged_own(const std::string & text) {
    char * data = static_cast<char *>(std::malloc(text.size() + 1));
    if (!data) {
        throw std::bad_alloc();
    }
    std::memcpy(data, text.data(), text.size());
    return {data, text.size()};
}

rpaged_tokens rpaged_own_tokens(const std::vector<int32_t> & tokens) {
    const size_t bytes = tokens.size() * sizeof(llama_token);
    auto * data = static_cast<llama_token *>(std::malloc(bytes + 1));
    if (!data) {
        throw std::bad_alloc();
    }
    std::memcpy(data, tokens.data(), bytes);
    return {data, tokens.size()};
}

extern "C" const char * rpaged_last_error(void) {
    return LAST_ERROR.c_str();
}

extern "C" void rpaged_bytes_free(rpaged_bytes bytes) {
    std::free(bytes.data);
}

extern "C" void rpaged_tokens_free(rpaged_tokens tokens) {
    std::free(tokens.data);
}

// ---- logging ---------------------------------------------------------------------------

static std::mutex  LOGGED_ERROR_LOCK;
static std::string LOGGED_ERROR;

// Set while a computation stops because it was asked to: that is no error.
static std::atomic<bool> STOPPING{false};

extern "C" void rpaged_log_stopping(bool stopping) {
    STOPPING = stopping;
}

// Upstream's callback, which also remembers the last error.
static void on_log(ggml_log_level level, const char * text, void * data) {
    if (STOPPING && (level == GGML_LOG_LEVEL_ERROR || level == GGML_LOG_LEVEL_WARN)) {
        return;
    }
    // A machine without a driver has done nothing wrong: a line that says so will do, and what
    // fails later is not blamed on it.
    static const char NO_CUDA[] = "ggml_cuda_init: failed to initialize CUDA: ";
    if (std::strncmp(text, NO_CUDA, sizeof(NO_CUDA) - 1) == 0) {
        rpaged_guard(0, [&] {
            const std::string reason = rpaged_one_line(text + sizeof(NO_CUDA) - 1);
            const std::string line = "CUDA gives no GPU here (" + reason + ")\n";
            common_log_default_callback(GGML_LOG_LEVEL_WARN, line.c_str(), data);
            return 0;
        });
        return;
    }
    if (level == GGML_LOG_LEVEL_ERROR) {
        rpaged_guard(0, [&] {
            const std::string line = rpaged_one_line(text);
            std::lock_guard<std::mutex> lock(LOGGED_ERROR_LOCK);
            // The first error is the cause; what follows only passes it on.
            if (LOGGED_ERROR.empty()) {
                LOGGED_ERROR = line;
            }
            return 0;
        });
    }
    common_log_default_callback(level, text, data);
}

extern "C" int32_t rpaged_init(void) {
    return rpaged_guard<int32_t>(RPAGED_FAILED, []() -> int32_t {
        common_init();
        llama_log_set(on_log, nullptr);
        return RPAGED_OK;
    });
}


extern "C" rpaged_bytes rpaged_log_last_error(void) {
    return rpaged_guard(rpaged_bytes{}, [] {
        std::lock_guard<std::mutex> lock(LOGGED_ERROR_LOCK);
        return rpaged_own(LOGGED_ERROR);
    });
}

extern "C" void rpaged_log_forget_error(void) {
    rpaged_guard(0, [] {
        std::lock_guard<std::mutex> lock(LOGGED_ERROR_LOCK);
        LOGGED_ERROR.clear();
        return 0;
    });
}

extern "C" void rpaged_log(rpaged_log_level level, const char * text) {
    rpaged_guard(0, [&] {
        switch (level) {
            case RPAGED_LOG_OUTPUT: LOG("%s", text); break;
            case RPAGED_LOG_ERROR:  LOG_ERR("%s", text); break;
            case RPAGED_LOG_WARN:   LOG_WRN("%s", text); break;
            case RPAGED_LOG_INFO:   LOG_INF("%s", text); break;
            case RPAGED_LOG_CONT:   LOG_CNT("%s", text); break;
            case RPAGED_LOG_DEBUG:  LOG_DBG("%s", text); break;
        }
        return 0;
    });
}

extern "C" void rpaged_log_stop(void) {
    rpaged_guard(0, [] {
        common_log_pause(common_log_main());
        return 0;
    });
}

extern "C" int32_t rpaged_log_verbosity(void) {
    return common_log_get_verbosity_thold();
}

extern "C" void rpaged_log_set_verbosity(int32_t verbosity) {
    common_log_set_verbosity_thold(verbosity);
}

extern "C" bool rpaged_output_failed(void) {
    return std::ferror(stdout) != 0;
}

// ---- model, context and sampler --------------------------------------------------------

struct rpaged_session {
    common_params * params = nullptr;
    // Before the context, which must be gone when they go.
    rpaged_pools pools;
    // In place of the one in `init`, once a turn of a chat has begun.
    common_sampler_ptr turn_sampler;
    common_init_result_ptr init;

    llama_context * context() const { return init->context(); }
    common_sampler * sampler() const {
        return turn_sampler ? turn_sampler.get() : init->sampler(0);
    }
};

const common_params & rpaged_session_params(const rpaged_session * session) {
    return *session->params;
}

void rpaged_session_use_sampling(rpaged_session * session, common_params_sampling sampling) {
    common_sampler_ptr sampler(common_sampler_init(session->init->model(), sampling));
    if (!sampler) {
        throw std::runtime_error("the sampler could not be made");
    }
    if (session->params->sampling.backend_sampling) {
        // The context refers to the old one.
        auto * chain = sampling.backend_sampling ? common_sampler_get(sampler.get()) : nullptr;
        llama_set_sampler(session->context(), 0, chain);
    }
    session->turn_sampler = std::move(sampler);
}

extern "C" rpaged_session * rpaged_session_new(rpaged_params * handle) {
    return rpaged_guard<rpaged_session *>(nullptr, [&]() -> rpaged_session * {
        rpaged_log_forget_error();
        rpaged_fail("");
        rpaged_check_adapter_files(handle->params);
        auto session = std::make_unique<rpaged_session>();
        session->params = &handle->params;
        session->init = common_init_from_params(handle->params);
        std::string logged;
        {
            std::lock_guard<std::mutex> lock(LOGGED_ERROR_LOCK);
            logged = LOGGED_ERROR;
        }
        rpaged_check_adapters(handle->params, session->init->model(), session->context(), logged);
        if (!session->init->model() || !session->context()) {
            return nullptr; // the reason is in the log
        }
        if (!session->sampler()) {
            throw std::runtime_error("the sampler could not be made");
        }
        return session.release();
    });
}

extern "C" void rpaged_session_free(rpaged_session * session) {
    delete session;
}

extern "C" llama_model * rpaged_session_model(rpaged_session * session) {
    return session->init->model();
}

extern "C" llama_context * rpaged_session_context(rpaged_session * session) {
    return session->context();
}

extern "C" rpaged_threadpools rpaged_session_threadpools(rpaged_session * session) {
    return rpaged_guard(rpaged_threadpools{}, [&] {
        const common_params & p = *session->params;
        auto & pools = session->pools;
        if (!pools.decode) {
            pools.start(p.cpuparams, p.cpuparams_batch);
        }
        return rpaged_threadpools{pools.decode.get(), pools.for_batches(), p.cpuparams.n_threads,
                                  p.cpuparams_batch.n_threads};
    });
}

extern "C" int32_t rpaged_warm_up(rpaged_session * session) {
    return rpaged_guard<int32_t>(RPAGED_FAILED, [&]() -> int32_t {
        auto * context = session->context();
        const auto * model = session->init->model();
        const auto * vocab = llama_model_get_vocab(model);
        std::vector<llama_token> tokens;
        for (const llama_token token : {llama_vocab_bos(vocab), llama_vocab_eos(vocab)}) {
            if (token != LLAMA_TOKEN_NULL) {
                tokens.push_back(token);
            }
        }
        tokens.resize(std::min<size_t>(std::max<size_t>(tokens.size(), 1),
                                       (size_t) session->params->n_batch));
        if (llama_model_has_encoder(model)) {
            common_batch batch = common_batch_get_one(context, tokens);
            llama_process(context, LLAMA_PROCESS_TYPE_ENCODE, batch.get());
            const auto start = llama_model_decoder_start_token(model);
            tokens = {start == LLAMA_TOKEN_NULL ? tokens.front() : start};
        }
        if (llama_model_has_decoder(model)) {
            common_batch batch = common_batch_get_one(context, tokens);
            llama_process(context, LLAMA_PROCESS_TYPE_DECODE, batch.get());
        }
        llama_memory_clear(llama_get_memory(context), true);
        llama_synchronize(context);
        llama_perf_context_reset(context);
        session->init->reset_samplers();
        return RPAGED_OK;
    });
}

extern "C" bool rpaged_session_has_template(const rpaged_session * session) {
    const auto * model = session->init->model();
    return !session->params->chat_template.empty() ||
           llama_model_chat_template(model, nullptr) != nullptr ||
           llama_model_chat_template(model, "tool_use") != nullptr;
}

static int32_t process(rpaged_session * session, llama_process_type type, const int32_t * tokens,
                       size_t count) {
    return rpaged_guard<int32_t>(-1, [&]() -> int32_t {
        common_batch batch = common_batch_get_one(session->context(), tokens, (int32_t) count);
        return llama_process(session->context(), type, batch.get());
    });
}

extern "C" int32_t rpaged_decode(rpaged_session * session, const int32_t * tokens, size_t count) {
    return process(session, LLAMA_PROCESS_TYPE_DECODE, tokens, count);
}

extern "C" int32_t rpaged_encode(rpaged_session * session, const int32_t * tokens, size_t count) {
    return process(session, LLAMA_PROCESS_TYPE_ENCODE, tokens, count);
}

extern "C" int32_t rpaged_shift(rpaged_session * session, int32_t keep, int32_t discard,
                                int32_t past) {
    return rpaged_guard<int32_t>(RPAGED_FAILED, [&]() -> int32_t {
        auto * memory = llama_get_memory(session->context());
        if (!llama_memory_seq_rm(memory, 0, keep, keep + discard)) {
            throw std::runtime_error("this model's memory cannot forget a part of the context");
        }
        llama_memory_seq_add(memory, 0, keep + discard, past, -discard);
        return RPAGED_OK;
    });
}

extern "C" bool rpaged_truncate(rpaged_session * session, int32_t from) {
    return rpaged_guard(false, [&] {
        return llama_memory_seq_rm(llama_get_memory(session->context()), -1, from, -1);
    });
}

extern "C" rpaged_tokens rpaged_tokenize(const rpaged_session * session, const char * text,
                                         size_t size, bool add_special, bool parse_special) {
    return rpaged_guard(rpaged_tokens{}, [&] {
        return rpaged_own_tokens(common_tokenize(session->context(), std::string(text, size), add_special,
                                          parse_special));
    });
}

extern "C" rpaged_bytes rpaged_token_piece(const rpaged_session * session, int32_t token,
                                           bool special) {
    return rpaged_guard(rpaged_bytes{}, [&] {
        return rpaged_own(common_token_to_piece(session->context(), token, special));
    });
}

extern "C" rpaged_bytes rpaged_tokens_text(const rpaged_session * session, const int32_t * tokens,
                                           size_t count) {
    return rpaged_guard(rpaged_bytes{}, [&] {
        return rpaged_own(string_from(session->context(),
                                      std::vector<llama_token>(tokens, tokens + count)));
    });
}

extern "C" int32_t rpaged_sample(rpaged_session * session, int32_t output) {
    return rpaged_guard<int32_t>(LLAMA_TOKEN_NULL, [&] {
        return common_sampler_sample(session->sampler(), session->context(), output);
    });
}

extern "C" int32_t rpaged_accept(rpaged_session * session, int32_t token, bool is_generated) {
    return rpaged_guard<int32_t>(RPAGED_FAILED, [&]() -> int32_t {
        common_sampler_accept(session->sampler(), token, is_generated);
        return RPAGED_OK;
    });
}

extern "C" int32_t rpaged_last_token(const rpaged_session * session) {
    return rpaged_guard<int32_t>(LLAMA_TOKEN_NULL,
                                 [&] { return common_sampler_last(session->sampler()); });
}

extern "C" rpaged_bytes rpaged_last_text(rpaged_session * session, int32_t count) {
    return rpaged_guard(rpaged_bytes{}, [&] {
        return rpaged_own(common_sampler_prev_str(session->sampler(), session->context(), count));
    });
}

extern "C" void rpaged_reset_sampler(rpaged_session * session) {
    rpaged_guard(0, [&] {
        common_sampler_reset(session->sampler());
        return 0;
    });
}

extern "C" uint32_t rpaged_seed(const rpaged_session * session) {
    return rpaged_guard<uint32_t>(0, [&] { return common_sampler_get_seed(session->sampler()); });
}

extern "C" rpaged_bytes rpaged_sampler_text(const rpaged_session * session) {
    return rpaged_guard(rpaged_bytes{},
                        [&] { return rpaged_own(common_sampler_print(session->sampler())); });
}

extern "C" void rpaged_perf_print(const rpaged_session * session) {
    rpaged_guard(0, [&] {
        common_perf_print(session->context(), session->sampler());
        return 0;
    });
}
