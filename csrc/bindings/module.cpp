// Translates between Python and the Engine; nothing is computed here. Python validates types and documents.
#include <pthread.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <chrono>
#include <optional>
#include <string>
#include <system_error>
#include <thread>
#include <utility>

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

template <typename T>
using Array = py::array_t<T, py::array::c_style>;

Batch batch_of(const Array<std::int32_t>& ids, const Array<std::int64_t>& offsets) {
  if (ids.ndim() != 1 || offsets.ndim() != 1 || offsets.size() < 1) {
    throw std::invalid_argument("ids and offsets: expected one dimension, and at least one offset");
  }
  const std::int64_t texts = offsets.size() - 1;
  if (offsets.at(0) != 0 || offsets.at(texts) != ids.size()) {
    throw std::invalid_argument("offsets: expected to run from 0 to " + std::to_string(ids.size()));
  }
  for (std::int64_t i = 0; i < texts; ++i) {
    if (offsets.at(i) > offsets.at(i + 1)) throw std::invalid_argument("offsets: expected not to decrease");
  }
  return {ids.data(), offsets.data(), texts};
}

py::tuple run(Engine& engine, const Array<std::int32_t>& ids, const Array<std::int64_t>& offsets) {
  const Batch batch = batch_of(ids, offsets);
  Array<float> logits({batch.texts, engine.config().labels});
  Array<float> first_token({batch.texts, engine.config().hidden});
  float* logits_data = logits.mutable_data();
  float* first_token_data = first_token.mutable_data();
  {
    const WithoutGil without_gil;
    engine.run(batch, logits_data, first_token_data);
  }
  return py::make_tuple(std::move(logits), std::move(first_token));
}

py::list channel_maxima(Engine& engine, const Array<std::int32_t>& ids, const Array<std::int64_t>& offsets) {
  const Batch batch = batch_of(ids, offsets);
  ChannelMaxima maxima;
  {
    const WithoutGil without_gil;
    maxima = engine.channel_maxima(batch);
  }
  py::list arrays;
  for (const std::vector<float>& channel : maxima) {
    arrays.append(Array<float>(static_cast<py::ssize_t>(channel.size()), channel.data()));
  }
  return arrays;
}

py::dict stage_seconds(Engine& engine, const Array<std::int32_t>& ids, const Array<std::int64_t>& offsets) {
  const Batch batch = batch_of(ids, offsets);
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
