// Translates between Python and the Engine; nothing is computed here. Python validates types and documents.
#include <pthread.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <memory>
#include <optional>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "engine.h"
#include "kernels/registry.h"
#include "model/error.h"

namespace py = pybind11;
using agnews_fast::Activation;
using agnews_fast::Batch;
using agnews_fast::ChannelMaxima;
using agnews_fast::Config;
using agnews_fast::Engine;
using agnews_fast::TensorInfo;

namespace {

// For a computation without the GIL. A thread that wants the GIL back once the interpreter ends is ended by it, and
// unwinding it here would end the process: so the interpreter waits for these computations before it ends, and those
// that start later keep the GIL.
class WithoutGil {
 public:
  WithoutGil() {
    if (ending) return;
    ++running;
    released_.emplace();
  }
  ~WithoutGil() {
    if (!released_) return;
    released_.reset();
    --running;
  }
  WithoutGil(const WithoutGil&) = delete;
  WithoutGil& operator=(const WithoutGil&) = delete;

  // To be called when the interpreter is about to end.
  static void finish() {
    ending = true;
    while (running > 0) {
      const py::gil_scoped_release release;
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  }
  static void forget() { running = 0; }  // in a forked child: they go on in the parent alone

 private:
  // Only used with the GIL held, which orders all accesses.
  static inline int running = 0;
  static inline bool ending = false;
  std::optional<py::gil_scoped_release> released_;
};

// What Python gets: rows of float32 behind the buffer protocol, so that NumPy is needed only by callers who want arrays.
class Matrix {
 public:
  Matrix(std::int64_t rows, std::int64_t columns)
      : rows_(rows), columns_(columns), values_(new float[static_cast<std::size_t>(rows * columns)]) {}

  float* data() { return values_.get(); }
  std::int64_t rows() const { return rows_; }
  std::int64_t columns() const { return columns_; }

  // The column of each row's largest value, the first of several.
  std::vector<std::int64_t> argmax() const {
    std::vector<std::int64_t> best;
    best.reserve(static_cast<std::size_t>(rows_));
    for (const float* row = begin(); row != end(); row += columns_) {
      best.push_back(std::max_element(row, row + columns_) - row);
    }
    return best;
  }
  bool all_finite() const {
    return std::all_of(begin(), end(), [](float x) { return std::isfinite(x); });
  }
  py::buffer_info buffer() {
    return {values_.get(), {rows_, columns_}, {columns_ * py::ssize_t{sizeof(float)}, py::ssize_t{sizeof(float)}}};
  }

 private:
  const float* begin() const { return values_.get(); }
  const float* end() const { return values_.get() + rows_ * columns_; }

  std::int64_t rows_, columns_;
  std::unique_ptr<float[]> values_;
};

// A copy of a caller's integers in one dimension: once the GIL is released, others may write to the buffer.
template <typename T>
std::vector<T> copy_integers(const char* name, const py::buffer& buffer) {
  const py::buffer_info info = buffer.request();
  const std::string expected = name + (": expected a contiguous buffer of int" + std::to_string(8 * sizeof(T)) + ", ");
  // Which of the codes has how many bytes depends on the platform, and some have the same.
  if (info.itemsize != sizeof(T) || info.format.size() != 1 ||
      std::string("ilq").find(info.format) == std::string::npos) {
    throw py::type_error(expected + "got items of format '" + info.format + "'");
  }
  if (info.ndim != 1) {
    throw std::invalid_argument(expected + "got " + std::to_string(info.ndim) + " dimensions instead of one");
  }
  if ((info.size > 1 && info.strides[0] != sizeof(T)) ||
      (info.size > 0 && reinterpret_cast<std::uintptr_t>(info.ptr) % alignof(T) != 0)) {
    throw std::invalid_argument(expected + "got one that is strided or not aligned");
  }
  const T* begin = static_cast<const T*>(info.ptr);
  return {begin, begin + info.size};
}

class Texts {
 public:
  Texts(const py::buffer& ids, const py::buffer& offsets)
      : ids_(copy_integers<std::int32_t>("ids", ids)), offsets_(copy_integers<std::int64_t>("offsets", offsets)) {
    if (offsets_.empty()) throw std::invalid_argument("offsets: expected at least one, got none");
    if (offsets_.front() != 0 || !std::cmp_equal(offsets_.back(), ids_.size())) {
      throw std::invalid_argument("offsets: expected to run from 0 to " + std::to_string(ids_.size()) + ", got " +
                                  std::to_string(offsets_.front()) + " to " + std::to_string(offsets_.back()));
    }
    if (!std::is_sorted(offsets_.begin(), offsets_.end())) {
      throw std::invalid_argument("offsets: expected not to decrease");
    }
  }

  Batch batch() const { return {ids_.data(), offsets_.data(), static_cast<std::int64_t>(offsets_.size()) - 1}; }

 private:
  std::vector<std::int32_t> ids_;
  std::vector<std::int64_t> offsets_;
};

py::tuple run(Engine& engine, const py::buffer& ids, const py::buffer& offsets) {
  const Texts texts(ids, offsets);
  const Batch batch = texts.batch();
  Matrix logits(batch.texts, engine.config().labels);
  Matrix first_token(batch.texts, engine.config().hidden);
  {
    const WithoutGil without_gil;
    engine.run(batch, logits.data(), first_token.data());
  }
  return py::make_tuple(std::move(logits), std::move(first_token));
}

// A matrix of one row for every product.
py::list channel_maxima(Engine& engine, const py::buffer& ids, const py::buffer& offsets) {
  const Texts texts(ids, offsets);
  const Batch batch = texts.batch();
  ChannelMaxima maxima;
  {
    const WithoutGil without_gil;
    maxima = engine.channel_maxima(batch);
  }
  py::list rows;
  for (const std::vector<float>& channels : maxima) {
    Matrix row(1, static_cast<std::int64_t>(channels.size()));
    std::copy(channels.begin(), channels.end(), row.data());
    rows.append(std::move(row));
  }
  return rows;
}

py::dict stage_seconds(Engine& engine, const py::buffer& ids, const py::buffer& offsets) {
  const Texts texts(ids, offsets);
  const Batch batch = texts.batch();
  std::array<double, agnews_fast::kStages> seconds = {};
  {
    const WithoutGil without_gil;
    seconds = engine.stage_seconds(batch);
  }
  py::dict named;
  for (std::size_t i = 0; i < seconds.size(); ++i) named[agnews_fast::kStageNames[i]] = seconds[i];
  return named;
}

Activation activation_of(const std::string& name) {
  if (name == "gelu") return Activation::kGelu;
  if (name == "relu") return Activation::kRelu;
  throw agnews_fast::ModelError("config: expected activation 'gelu' or 'relu', got '" + name + "'");
}

}  // namespace

PYBIND11_MODULE(_core, m) {
  m.attr("__version__") = AGNEWS_FAST_VERSION;
  py::register_exception<agnews_fast::ModelError>(m, "ModelError", PyExc_ValueError).attr("__doc__") =
      R"(A model file or checkpoint that cannot be used: damaged, of another kind or version, or at odds with itself.

A subclass of ValueError. The message says what was expected, what came, and where: the file, and the tensor or key in it.

Example:
    >>> from agnews_fast import Classifier, ModelError
    >>> try:
    ...     Classifier("/dev/null")
    ... except ModelError as error:
    ...     print(error)
    /dev/null: expected a regular file, got a device
)";
  py::register_exception_translator([](std::exception_ptr p) {
    try {
      if (p) std::rethrow_exception(p);
    } catch (const std::system_error& e) {
      errno = e.code().value();
      PyErr_SetFromErrno(PyExc_OSError);
    }
  });

  py::module_::import("atexit").attr("register")(py::cpp_function(&WithoutGil::finish));
  ::pthread_atfork(nullptr, nullptr, &WithoutGil::forget);

  m.def(
      "available_isas",
      [] {
        std::vector<std::string> names;
        for (const agnews_fast::Kernels* kernels : agnews_fast::available_kernels()) names.emplace_back(kernels->name);
        return names;
      },
      R"(The instruction sets that the core is built for and this CPU supports, slowest first.

The last is the one in use, unless the environment variable AGNEWS_FAST_ISA names another. All give the same bits.

Returns:
    Names out of scalar, avx2 and avx512vnni.

Example:
    >>> from agnews_fast import available_isas
    >>> available_isas()[0]
    'scalar'
)");

  py::class_<Matrix>(m, "Matrix", py::buffer_protocol(),
                     R"(float32 values in rows. ``numpy.asarray`` gives an array of the same memory.

Example:
    >>> import numpy
    >>> from agnews_fast.engine import load, pack_ids
    >>> from agnews_fast.classifier import PACKAGED_MODEL
    >>> logits, first_token = load(PACKAGED_MODEL, threads=1).engine.run(*pack_ids([[101, 15768, 3062, 102]]))
    >>> logits.shape, first_token.shape
    ((1, 4), (1, 768))
    >>> logits.argmax() == numpy.asarray(logits).argmax(axis=1).tolist()
    True
)")
      .def_property_readonly("shape", [](const Matrix& m) { return py::make_tuple(m.rows(), m.columns()); })
      .def("argmax", &Matrix::argmax)
      .def("all_finite", &Matrix::all_finite)
      .def_buffer(&Matrix::buffer);

  py::class_<Engine>(m, "Engine")
      .def(py::init([](int file, const py::dict& config,
                       const std::map<std::string, std::tuple<std::string, std::vector<std::int64_t>, std::uint64_t,
                                                              std::uint64_t>>& tensors,
                       int threads, const std::string& isa, int largest_team) {
             const auto size = [&](const char* name) { return config[name].cast<std::int64_t>(); };
             Config sizes = {};
             sizes.layers = size("layers");
             sizes.hidden = size("hidden");
             sizes.heads = size("heads");
             sizes.ffn = size("ffn");
             sizes.vocabulary = size("vocabulary");
             sizes.positions = size("positions");
             sizes.labels = size("labels");
             sizes.activation = activation_of(config["activation"].cast<std::string>());
             sizes.layer_norm_epsilon = config["layer_norm_epsilon"].cast<float>();
             sizes.levels = config["levels"].cast<int>();
             sizes.depth = config["depth"].cast<int>();
             std::map<std::string, TensorInfo> table;
             for (const auto& [name, tensor] : tensors) {
               const auto& [dtype, shape, begin, end] = tensor;
               table[name] = TensorInfo{dtype, shape, begin, end};
             }
             const WithoutGil without_gil;
             return std::make_unique<Engine>(file, sizes, std::move(table), threads, isa, largest_team);
           }),
           py::arg("file"), py::kw_only(), py::arg("config"), py::arg("tensors"), py::arg("threads"), py::arg("isa"),
           py::arg("largest_team"))
      .def("run", &run, py::arg("ids"), py::arg("offsets"))
      .def("channel_maxima", &channel_maxima, py::arg("ids"), py::arg("offsets"))
      .def("stage_seconds", &stage_seconds, py::arg("ids"), py::arg("offsets"))
      .def_property_readonly("isa", &Engine::isa)
      .def_property_readonly("threads", &Engine::threads);
}
