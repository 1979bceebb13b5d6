#include "runtime/mapped_file.h"

#include <sys/mman.h>
#include <sys/stat.h>

#include <cerrno>
#include <system_error>

namespace agnews_fast {

MappedFile::MappedFile(int file) {
  struct stat status;
  if (::fstat(file, &status) != 0) throw std::system_error(errno, std::generic_category());
  if (status.st_size == 0) return;
  void* address = ::mmap(nullptr, static_cast<std::size_t>(status.st_size), PROT_READ, MAP_SHARED, file, 0);
  if (address == MAP_FAILED) throw std::system_error(errno, std::generic_category());
  data_ = static_cast<const std::byte*>(address);
  size_ = static_cast<std::size_t>(status.st_size);
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(const_cast<std::byte*>(data_), size_);
}

}  // namespace agnews_fast
