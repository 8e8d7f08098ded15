// Downloads of models: told to whoever watches, and what went wrong as one sentence.
#include "shim_internal.h"

#include "arg.h"
#include "common.h"
#include "download.h"
#include "log.h"

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <mutex>
#include <stdexcept>

#ifndef _WIN32
#include <sys/resource.h>
#endif

static rpaged_download_watcher WATCHER = nullptr;

extern "C" void rpaged_watch_downloads(rpaged_download_watcher watcher) {
    WATCHER = watcher;
}

bool rpaged_downloads_are_watched() {
    return WATCHER != nullptr;
}

static double mib(size_t bytes) {
    return (double) bytes / (1024.0 * 1024.0);
}

// The address without name and password.
static std::string shown(const std::string & url) {
    const auto start = url.find("://");
    const auto host = start == std::string::npos ? 0 : start + 3;
    const auto at = url.substr(0, url.find('/', host)).rfind('@');
    return at == std::string::npos || at < host ? url : url.substr(0, host) + url.substr(at + 1);
}

// Stands in for llama.cpp's own progress, which goes to standard output. Several threads
// call it when a model has several files.
struct download_watch : common_download_callback {
    std::mutex lock;
    common_download_progress failed; // the first that failed; without an address: none has

    void on_start(const common_download_progress & p) override {
        tell(p, RPAGED_DOWNLOAD_GOES_ON);
        if (!WATCHER) {
            LOG_INF("llama_completion: downloading '%s', %.1f MiB\n", shown(p.url).c_str(), mib(p.total));
        }
    }
    void on_update(const common_download_progress & p) override { tell(p, RPAGED_DOWNLOAD_GOES_ON); }
    void on_done(const common_download_progress & p, bool ok) override {
        tell(p, ok ? RPAGED_DOWNLOAD_DONE : RPAGED_DOWNLOAD_FAILED);
        std::lock_guard<std::mutex> guard(lock);
        if (!ok && failed.url.empty()) {
            failed = p;
        }
    }
    static void tell(const common_download_progress & p, rpaged_download_state state) {
        if (WATCHER) {
            WATCHER(shown(p.url).c_str(), p.downloaded, p.total, state);
        }
    }
};

// Why `path` cannot grow; empty when it can. What is in it stays untouched, for a later run
// goes on from there.
static std::string why_full(const std::string & path, size_t bytes) {
    std::error_code ignored;
    const auto place = std::filesystem::u8path(path);
    const auto space = std::filesystem::space(place.parent_path(), ignored);
    if (!ignored && space.available < bytes) {
        return string_format("no space left there for %.1f MiB more", mib(bytes));
    }
    if (std::filesystem::exists(place, ignored)) {
        FILE * file = std::fopen(path.c_str(), "r+b");
        if (!file) {
            return std::strerror(errno);
        }
        std::fclose(file);
    }
#ifndef _WIN32
    const auto size = std::filesystem::file_size(place, ignored);
    rlimit limit;
    if (getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY &&
        (ignored ? 0 : size) + bytes > limit.rlim_cur) {
        return std::strerror(EFBIG);
    }
#endif
    // A quota shows only when something is written.
    const std::string probe = path + ".probe";
    FILE * file = std::fopen(probe.c_str(), "wb");
    if (!file) {
        return std::strerror(errno);
    }
    // Where an open file can go, it goes at once: nothing ends the process in between.
    std::remove(probe.c_str());
    const std::string block(64 * 1024, '\0');
    std::string why;
    if (std::fwrite(block.data(), 1, block.size(), file) < block.size() || std::fflush(file) != 0) {
        why = std::strerror(errno);
    }
    std::fclose(file);
    std::remove(probe.c_str());
    return why;
}

// Where the file from `url` goes until it is whole; empty when that is not known.
static std::string part_of(const std::string & url, const common_params & params,
                           const common_models_handler & models) {
    std::string path;
    const auto look_at = [&](const std::string & address, const std::string & place) {
        if (path.empty() && address == url) {
            path = place;
        }
    };
    const auto & main = params.model;
    const auto pieces = main.url.empty() ? std::vector<std::string>()
                                         : common_download_get_all_parts(main.url);
    for (const auto & piece : pieces) {
        // The pieces of a model lie side by side under their own names.
        const auto folder = main.path.substr(0, main.path.rfind('/') + 1);
        const auto plain = piece.substr(0, piece.find_first_of("?#"));
        look_at(piece, pieces.size() == 1 ? main.path : folder + plain.substr(plain.rfind('/') + 1));
    }
    look_at(params.mmproj.url, params.mmproj.path);
    look_at(params.speculative.draft.mparams.url, params.speculative.draft.mparams.path);
    for (const auto * plan : {&models.plan, &models.plan_spec}) {
        for (const auto & file : plan->model_files) {
            look_at(file.url, file.local_path);
        }
        for (const auto * file : {&plan->mmproj, &plan->mtp, &plan->eagle3, &plan->dflash,
                                  &plan->dspark, &plan->preset}) {
            look_at(file->url, file->local_path);
        }
    }
    return path.empty() ? path : path + ".downloadInProgress";
}

// The number behind "status code: " in llama.cpp's complaint; 0 when there is none.
static int status_in(const std::string & text) {
    const char * mark = "status code: ";
    const auto at = text.find(mark);
    return at == std::string::npos ? 0 : std::atoi(text.c_str() + at + std::strlen(mark));
}

// `part` is where the file that failed went so far.
static std::string why_failed(const std::string & what, const common_params & params,
                              const common_download_progress & failed, const std::string & part) {
    if (what.find("HTTPS is not supported") != std::string::npos) {
        return "this build has no HTTPS; install OpenSSL's headers (libssl-dev) and build again";
    }
    const std::string quoted =
        "'" + shown(failed.url.empty() ? params.model.url : failed.url) + "'";
    if (!failed.url.empty()) {
        const size_t rest = failed.total > failed.downloaded ? failed.total - failed.downloaded : 0;
        const std::string full = part.empty() ? "" : why_full(part, rest);
        if (!full.empty()) {
            return "'" + part + "' cannot be written: " + full +
                   "; LLAMA_CACHE names another folder";
        }
        const std::string broken = quoted + string_format(" broke off after %.1f of %.1f MiB; the "
                                                          "same command goes on",
                                                          mib(failed.downloaded), mib(failed.total));
        return part.empty() ? broken : broken + ", or begins anew once '" + part + "' is deleted";
    }
    if (!params.model.docker_repo.empty() && what == "cannot make GET request") {
        return "no answer from Docker Hub";
    }
    const int status = status_in(what);
    if (status == 0 || params.model.url.empty()) {
        return what;
    }
    if (status < 0) {
        return "no answer from " + quoted;
    }
    const std::string number = " (status " + std::to_string(status) + ")";
    if (status == 401 || status == 403) {
        return quoted + " may not be read" + number + "; see --hf-token";
    }
    return status == 404 ? "there is nothing at " + quoted + number
                         : quoted + " cannot be had" + number;
}

void rpaged_get_models(common_params & params) {
    if (rpaged_get_headers(params)) {
        return;
    }
    download_watch watch;
    common_models_handler models;
    std::string failure;
    try {
        models = common_models_handler_init(params, RPAGED_EXAMPLE);
        common_models_handler_apply(models, params, &watch);
    } catch (const std::exception & error) {
        failure = rpaged_one_line(error.what());
    }
    if (!failure.empty()) {
        throw std::runtime_error("could not get the model: " +
                                 why_failed(failure, params, watch.failed,
                                            part_of(watch.failed.url, params, models)));
    }
    const auto & model = params.model;
    std::error_code ignored;
    if (params.offline && !model.url.empty() &&
        !std::filesystem::exists(std::filesystem::u8path(model.path), ignored)) {
        throw std::runtime_error("could not get the model: '" + model.path +
                                 "' is not there, and --offline forbids to download it");
    }
    if (model.path.empty() && !model.hf_repo.empty()) {
        throw std::runtime_error("could not get the model: " +
                                 (params.offline ? "the cache has none of '" + model.hf_repo +
                                                       "', and --offline forbids to download it"
                                                 : "Hugging Face has none of '" + model.hf_repo +
                                                       "', or does not answer"));
    }
}
