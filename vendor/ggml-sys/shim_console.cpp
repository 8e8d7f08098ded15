// What a completion reads while it runs, and what its context keeps on disk: doors to
// llama.cpp's console, to the parameters of a dialogue, and to saved states.
#include "shim_internal.h"

#include "common.h"
#include "console.h"
#include "llama.h"
#include "log.h"

#include <clocale>
#include <stdexcept>
#include <string>

// ---- parameters --------------------------------------------------------------------------

extern "C" int32_t rpaged_params_dialogue(const rpaged_params * handle, rpaged_dialogue * out) {
    return rpaged_guard<int32_t>(RPAGED_FAILED, [&]() -> int32_t {
        const common_params & p = handle->params;
        *out = {};
        out->grp_attn_w        = p.grp_attn_w;
        out->interactive       = p.interactive;
        out->interactive_first = p.interactive_first;
        out->prompt_cache_all  = p.prompt_cache_all;
        out->prompt_cache_ro   = p.prompt_cache_ro;
        out->ctx_shift         = p.ctx_shift;
        return RPAGED_OK;
    });
}

extern "C" rpaged_bytes rpaged_unescape(const char * text, size_t size) {
    return rpaged_guard(rpaged_bytes{}, [&] {
        std::string copy(text, size);
        string_process_escapes(copy);
        return rpaged_own(copy);
    });
}

// ---- console -----------------------------------------------------------------------------

extern "C" void rpaged_log_drain(void) {
    rpaged_guard(0, [] {
        common_log_flush(common_log_main());
        return 0;
    });
}

extern "C" int32_t rpaged_console_open(bool simple_io, bool colours) {
    return rpaged_guard<int32_t>(RPAGED_FAILED, [&]() -> int32_t {
        console::init(simple_io, colours);
        // The console takes over the user's locale to know how characters are spelled and
        // how wide they are; numbers are to be read and written as ever.
        std::setlocale(LC_NUMERIC, "C");
        return RPAGED_OK;
    });
}

extern "C" void rpaged_console_close(void) {
    rpaged_guard(0, [] {
        console::cleanup();
        return 0;
    });
}

extern "C" void rpaged_console_display(rpaged_display display) {
    rpaged_guard(0, [&] {
        switch (display) {
            case RPAGED_DISPLAY_PLAIN:  console::set_display(DISPLAY_TYPE_RESET); break;
            case RPAGED_DISPLAY_PROMPT: console::set_display(DISPLAY_TYPE_PROMPT); break;
            case RPAGED_DISPLAY_INPUT:  console::set_display(DISPLAY_TYPE_USER_INPUT); break;
            case RPAGED_DISPLAY_ERROR:  console::set_display(DISPLAY_TYPE_ERROR); break;
        }
        return 0;
    });
}

extern "C" rpaged_bytes rpaged_console_read_line(bool multiline, bool * more) {
    *more = false;
    return rpaged_guard(rpaged_bytes{}, [&] {
        std::string line;
        *more = console::readline(line, multiline);
        return rpaged_own(line);
    });
}

// ---- state -------------------------------------------------------------------------------

extern "C" int32_t rpaged_decode_at(rpaged_session * session, int32_t token, int32_t position) {
    return rpaged_guard<int32_t>(-1, [&]() -> int32_t {
        auto * context = rpaged_session_context(session);
        common_batch batch(context);
        batch.add(token, position, 0, true);
        return llama_process(context, LLAMA_PROCESS_TYPE_DECODE, batch.get());
    });
}
