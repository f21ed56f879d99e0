// Linear layers alone, and whole layers of a decoder in one parallel region.
//
// A layer calls the same functions for each row as the separate operations do, so a row has the same bits either way.
#include <chrono>

#include "attention.h"
#include "linear.h"
#include "rows.h"
#include "team.h"

namespace headrace {
namespace {

// Multiplies all rows; they must be prepared.
void multiply(Team::Member& member, const Linear& layer, const Rows& rows, float* out) {
  member.run(count_items(layer, rows.count), [&](int64_t item) { multiply_item(layer, rows, item, out); });
}

// Weights of one layer; see kernels/cpp_layers.py, which has the same fields. Norms of added values may be null.
struct Layer {
  const float* input_norm;
  Linear qkv;
  HeadForm heads;
  Form form;
  Linear output;
  const float *output_norm, *mlp_norm;
  Linear gate_up;
  ActivationForm activation;
  Linear down;
  const float* mlp_output_norm;
  float eps;
};

// Parts of a step, of which the time is measured.
enum Part { kProducts, kAttention, kRows, kParts };

// Memory for the results of a layer's operations, of all rows.
class Memory {
 public:
  void reserve(const Layer& layer, int64_t rows) {
    for (const Linear* linear : {&layer.qkv, &layer.output, &layer.gate_up, &layer.down}) inputs.reserve(*linear, rows);
    grow(normed, rows * layer.qkv.inputs);
    grow(qkv, rows * layer.qkv.outputs);
    grow(queries, rows * layer.output.inputs);
    grow(attended, rows * layer.output.inputs);
    grow(gate_up, rows * layer.gate_up.outputs);
    grow(activated, rows * layer.down.inputs);
  }
  RowMemory inputs;
  std::vector<float> normed, qkv, queries, attended, gate_up, activated;

 private:
  static void grow(std::vector<float>& memory, int64_t size) {
    if (static_cast<int64_t>(memory.size()) < size) memory.resize(size);
  }
};

// One thread's view of a step.
class Pass {
 public:
  Pass(Team::Member& member, Memory& memory, const Step& step, const std::vector<RowTile>& tiles, float* residual,
       float* x, double* seconds)
      : member_(member), memory_(memory), step_(step), tiles_(tiles), residual_(residual), x_(x),
        seconds_(member.thread() == 0 ? seconds : nullptr) {
    apart_ = static_cast<int64_t>(tiles.size()) == step.rows;
    for (int64_t row = 1; row < step.rows; ++row) apart_ = apart_ && step.sequences[row] != step.sequences[row - 1];
  }

  // Adds `x`, what the layer before has computed, to the residual, and replaces it by what this layer computes.
  void layer(const Layer& layer, const Cache& cache, bool first) {
    const Rows normed = memory_.inputs.rows(memory_.normed.data(), step_.rows);
    add_and_norm(layer.qkv, first ? nullptr : x_, layer.input_norm, layer.eps);
    product(layer.qkv, normed, memory_.qkv.data());
    attention(layer, cache);
    const Rows attended = memory_.inputs.rows(memory_.attended.data(), step_.rows);
    each_row([&](int64_t row) { prepare(layer.output, attended, row); });
    product(layer.output, attended, x_);
    norm(layer.output_norm, layer.output.outputs, layer.eps);
    add_and_norm(layer.gate_up, x_, layer.mlp_norm, layer.eps);
    product(layer.gate_up, normed, memory_.gate_up.data());
    activate(layer);
    product(layer.down, memory_.inputs.rows(memory_.activated.data(), step_.rows), x_);
    norm(layer.mlp_output_norm, layer.down.outputs, layer.eps);
  }

 private:
  // Measures the time of a phase, which includes waiting for other threads.
  template <class F>
  void timed(Part part, const F& f) {
    if (seconds_ == nullptr) return f();
    const auto begin = std::chrono::steady_clock::now();
    f();
    seconds_[part] += std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  }

  template <class F>
  void each_row(const F& f) {
    timed(kRows, [&] { member_.run(step_.rows, f); });
  }

  void product(const Linear& layer, const Rows& rows, float* out) {
    timed(kProducts, [&] { multiply(member_, layer, rows, out); });
  }

  // Adds x, if given, to the residual, and prepares its norm for a linear layer.
  void add_and_norm(const Linear& next, const float* x, const float* weight, float eps) {
    const Rows rows = memory_.inputs.rows(memory_.normed.data(), step_.rows);
    const int64_t size = next.inputs;
    each_row([&](int64_t row) {
      const int64_t at = row * size;
      add_norm_row(x == nullptr ? nullptr : x + at, residual_ + at, weight, memory_.normed.data() + at, size, eps);
      prepare(next, rows, row);
    });
  }

  void norm(const float* weight, int64_t size, float eps) {
    if (weight != nullptr)
      each_row([&](int64_t row) { norm_row(x_ + row * size, weight, x_ + row * size, size, eps); });
  }

  void attention(const Layer& layer, const Cache& cache) {
    const int64_t heads = cache.heads;
    float *queries = memory_.queries.data(), *out = memory_.attended.data();
    auto rotate = [&](int64_t i) {
      rotate_head(memory_.qkv.data(), layer.heads, step_, cache, i / heads, i % heads, queries);
    };
    auto attend_tile = [&](int64_t i) {
      attend(tiles_[i / heads], i % heads, queries, cache, layer.heads.heads, layer.form, out);
    };
    const int64_t items = static_cast<int64_t>(tiles_.size()) * heads;
    timed(kAttention, [&] {
      if (apart_) return member_.run(items, [&](int64_t i) { rotate(i), attend_tile(i); });
      member_.run(step_.rows * heads, rotate);  // rows attend to keys of other rows of their sequence
      member_.run(items, attend_tile);
    });
  }

  void activate(const Layer& layer) {
    const int64_t size = layer.down.inputs;
    const Rows rows = memory_.inputs.rows(memory_.activated.data(), step_.rows);
    each_row([&](int64_t row) {
      activate_row(memory_.gate_up.data() + row * 2 * size, memory_.activated.data() + row * size, size,
                   layer.activation);
      prepare(layer.down, rows, row);
    });
  }

  Team::Member& member_;
  Memory& memory_;
  const Step& step_;
  const std::vector<RowTile>& tiles_;
  float *residual_, *x_;
  double* seconds_;
  bool apart_;  // each row is of another sequence
};

}  // namespace

extern "C" {

// Multiplies x [rows, inputs] by a layer's weights into out [rows, outputs].
void hr_linear(const Linear* layer, const float* x, float* out, int64_t count) {
  static thread_local RowMemory memory;
  memory.reserve(*layer, count);
  const Rows rows = memory.rows(x, count);
  Team::start(count_items(*layer, count), [&](Team::Member& member) {
    if (layer->format != kFloats) member.run(count, [&](int64_t row) { prepare(*layer, rows, row); });
    multiply(member, *layer, rows, out);
  });
}

// Computes layers begin … end - 1 of a decoder. `caches` has one cache for each of its layers. The residual, the
// embedding of the rows before the first layer, and x, [rows, hidden] each, pass from layer to layer: the sum of both
// is the result of the last one. `seconds` of each part are added up, unless that is null.
void hr_layers(const Layer* layers, const Cache* caches, int64_t begin, int64_t end, const Step* step, float* residual,
               float* x, double* seconds) {
  static thread_local Memory memory;
  for (int64_t i = begin; i < end; ++i) memory.reserve(layers[i], step->rows);
  Memory& shared = memory;  // of the caller, also in other threads
  const std::vector<RowTile>& tiles = tiles_of(*step, layers[begin].heads.heads, caches[begin].heads);
  Team::start(at::get_num_threads(), [&](Team::Member& member) {
    Pass pass(member, shared, *step, tiles, residual, x, seconds);
    for (int64_t i = begin; i < end; ++i) pass.layer(layers[i], caches[i], i == 0);
  });
}

}  // extern "C"
}  // namespace headrace
