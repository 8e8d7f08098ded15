// Headers of models that lie elsewhere: as many bytes as it takes, in a file as long as the
// whole would be, whose rest is a hole.
#include "shim_internal.h"

#include "arg.h"
#include "common.h"
#include "download.h"

#include <algorithm>
#include <filesystem>
#include <fstream>

// Where headers go instead of whole files; empty: whole files are wanted.
static std::string FOLDER;

extern "C" void rpaged_fetch_headers_into(const char * folder) {
    FOLDER = folder;
}

// The first request asks for so many bytes, each further one for four times as many.
static const size_t FIRST_BYTES = size_t(1) << 20;
static const size_t MOST_BYTES  = size_t(1) << 30;
static const long   TIMEOUT_SECONDS = 60;

// Whether the file at `path` begins with a whole header; it is then made as long as that
// says.
static bool complete(const std::filesystem::path & path) {
    const auto header = rpaged_read_header(path.u8string());
    if (!header) {
        return false;
    }
    size_t end = gguf_get_data_offset(header.get());
    const size_t start = end;
    for (int64_t i = 0; i < gguf_get_n_tensors(header.get()); i++) {
        end = std::max(end, start + gguf_get_tensor_offset(header.get(), i) +
                                gguf_get_tensor_size(header.get(), i));
    }
    std::filesystem::resize_file(path, end);
    return true;
}

// Whether the header at `url` could be had, for `path`.
static bool fetch(const std::string & url, const std::string & token,
                  const std::filesystem::path & path) {
    for (size_t bytes = FIRST_BYTES; bytes <= MOST_BYTES; bytes *= 4) {
        common_remote_params request;
        request.timeout  = TIMEOUT_SECONDS;
        request.max_size = (long) bytes;
        request.headers.push_back({"Range", "bytes=0-" + std::to_string(bytes - 1)});
        if (!token.empty()) {
            request.headers.push_back({"Authorization", "Bearer " + token});
        }
        const auto answer = common_remote_get_content(url, request);
        if (answer.first != 200 && answer.first != 206) {
            return false;
        }
        std::ofstream file(path, std::ios::binary | std::ios::trunc);
        file.write(answer.second.data(), (std::streamsize) answer.second.size());
        file.close();
        if (!file) {
            return false;
        }
        if (complete(path)) {
            return true;
        }
        if (answer.second.size() < bytes) {
            return false;
        }
    }
    return false;
}

// Makes the folder, once; not where somebody else has made one.
static bool make_folder() {
    static const bool made = [] {
        std::error_code ignored;
        return std::filesystem::create_directory(std::filesystem::u8path(FOLDER), ignored);
    }();
    return made;
}

// The model's files by address, and whether all of them are here already.
static std::vector<std::string> addresses(const common_params & params, bool & are_here) {
    std::error_code ignored;
    const auto is_here = [&](const std::string & path) {
        return std::filesystem::exists(std::filesystem::u8path(path), ignored);
    };
    std::vector<std::string> urls;
    if (!params.model.url.empty()) {
        const auto & path = params.model.path;
        const auto & url  = params.model.url;
        are_here = is_here(path.empty() ? fs_get_cache_file(url.substr(url.rfind('/') + 1)).u8string()
                                        : path);
        return common_download_get_all_parts(params.model.url);
    }
    const auto models = common_models_handler_init(params, RPAGED_EXAMPLE);
    are_here = true;
    for (const auto & file : models.plan.model_files) {
        urls.push_back(file.url);
        are_here = are_here && is_here(file.local_path);
    }
    return urls;
}

bool rpaged_get_headers(common_params & params) {
    const auto & drafter = params.speculative.draft.mparams;
    const bool elsewhere = !params.model.url.empty() || !params.model.hf_repo.empty();
    if (FOLDER.empty() || !elsewhere || params.offline || !drafter.url.empty() ||
        !drafter.hf_repo.empty()) {
        return false;
    }
    try {
        bool are_here = false;
        const auto urls = addresses(params, are_here);
        if (urls.empty() || are_here || !make_folder()) {
            return false;
        }
        std::string first;
        for (const auto & url : urls) {
            const auto plain = url.substr(0, url.find_first_of("?#"));
            const auto path  = std::filesystem::u8path(FOLDER) /
                              std::filesystem::u8path(plain.substr(plain.rfind('/') + 1));
            if (!fetch(url, params.hf_token, path)) {
                return false;
            }
            if (first.empty()) {
                first = path.u8string();
            }
        }
        params.model.path = first;
        return true;
    } catch (const std::exception &) {
        // A server that gives no parts of files, or no answer: the download says why.
        return false;
    }
}
