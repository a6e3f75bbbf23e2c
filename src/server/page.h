// The web page at "/", and the description of the API: src/server/page, made part of the binary by CMake.
#pragma once

#include <span>
#include <string_view>

namespace thermocline::server {

struct PageFile {
    std::string_view path, content_type, content;
};

std::span<const PageFile> page_files();

}  // namespace thermocline::server
