#pragma once

#include <fcntl.h>
#include <unistd.h>

#include <cstddef>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <string>

namespace agnews_fast {

// A file of the given bytes in the system's temporary folder, removed at the end.
class TemporaryFile {
 public:
  TemporaryFile(const void* bytes, std::size_t size) {
    static int count = 0;
    const std::string name = "agnews_fast_test_" + std::to_string(::getpid()) + "_" + std::to_string(count++);
    path_ = std::filesystem::temp_directory_path() / name;
    std::ofstream file(path_, std::ios::binary);
    file.write(static_cast<const char*>(bytes), static_cast<std::streamsize>(size));
    if (!file.flush()) throw std::runtime_error("cannot write " + path_.string());
    descriptor_ = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC);
    if (descriptor_ < 0) throw std::runtime_error("cannot open " + path_.string());
  }
  ~TemporaryFile() {
    ::close(descriptor_);
    std::error_code ignored;
    std::filesystem::remove(path_, ignored);
  }
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;

  int descriptor() const { return descriptor_; }  // open for reading

 private:
  std::filesystem::path path_;
  int descriptor_ = -1;
};

}  // namespace agnews_fast
