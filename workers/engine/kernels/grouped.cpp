// Product of a linear layer whose weights are integers of 4 or 8 bits with a scale and a zero for each group of inputs:
// weight = factor of the output * scale * (integer - zero). Activations are 16-bit integers with a scale for each row.
// A scale and a zero are numbers of 16 bits, or of a byte each, which counts sixteenths of a zero.
//
// A group's sum of integers is exact, and the groups of a row are added in order, each product rounded alone, so a
// row's bits depend neither on its neighbours nor on the width of vectors.
#include "integers.h"

namespace headrace {
namespace {

typedef uint16_t HalfVec __attribute__((vector_size(2 * kLanes), aligned(2), may_alias));
typedef uint8_t CountVec __attribute__((vector_size(kLanes), aligned(1), may_alias));

// Loads kLanes numbers of 16 bits, in IEEE 754's form.
inline Vec load_halves(const uint16_t* p) {
#if HEADRACE_LANES == 16 && defined(__AVX512F__)
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif HEADRACE_LANES == 8 && defined(__F16C__)
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
  const IntVec bits = __builtin_convertvector(*reinterpret_cast<const HalfVec*>(p), IntVec);
  const Vec magnitude = (Vec)((bits & 0x7fff) << 13) * 0x1p112f;  // the exponents' biases differ by 112
  return (Vec)((IntVec)magnitude | ((bits & 0x8000) << 16));
#endif
}

// Loads kLanes bytes.
inline Vec load_counts(const uint8_t* p) {
#if HEADRACE_LANES == 16 && defined(__AVX512F__)
  return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#elif HEADRACE_LANES == 8 && defined(__AVX2__)
  return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
#else
  return __builtin_convertvector(__builtin_convertvector(*reinterpret_cast<const CountVec*>(p), IntVec), Vec);
#endif
}

// Loads the scales of kLanes columns.
inline Vec load_scales(const uint8_t* p, int64_t width) {
  return width == 1 ? load_counts(p) : load_halves(reinterpret_cast<const uint16_t*>(p));
}
inline Vec load_zeros(const uint8_t* p, int64_t width) {
  return width == 1 ? load_counts(p) * 0.0625f : load_halves(reinterpret_cast<const uint16_t*>(p));
}

// Bytes of one group of a panel: scales, zeros, then codes.
inline int64_t header_bytes(int64_t width) { return 2 * width * kPanel; }
inline int64_t group_bytes(int64_t group, int64_t bits, int64_t width) {
  return header_bytes(width) + group * kPanel * bits / 8;
}

// Code of the integer 0: those of 8 bits have a sign.
constexpr uint32_t offset(int64_t bits) { return bits == 8 ? 128 : 0; }

// Multiplies R rows from `row` on by a panel.
template <int R, int Bits>
void multiply(const Linear& layer, const Rows& rows, int64_t row, int64_t panel, const uint8_t* packed, Ahead ahead,
              float* out) {
  const int64_t stride = row_stride(layer), groups = row_groups(layer), group = layer.group, width = layer.width;
  const int64_t header = header_bytes(width), bytes = group_bytes(group, Bits, width);
  const int8_t* x = rows.integers + row * 2 * stride;
  Vec totals[R][2] = {};
  for (int64_t g = 0; g < groups; ++g, x += group, packed += bytes) {
    QuadSums sums[R][2];
    ahead.prefetch();  // the header
    add_codes<R, Bits>(x, stride, group, packed + header, ahead, sums);
    const uint8_t* at = packed + kPanel * width;
    const Vec scales[2] = {load_scales(packed, width), load_scales(packed + kLanes * width, width)};
    const Vec zeros[2] = {load_zeros(at, width), load_zeros(at + kLanes * width, width)};
    for (int r = 0; r < R; ++r) {
      const uint32_t sum = rows.sums[(row + r) * groups + g];
      const Vec of_inputs = splat(static_cast<float>(static_cast<int32_t>(sum)));
      for (int v = 0; v < 2; ++v) {
        const IntVec products = (IntVec)(sums[r][v].total() - offset(Bits) * sum);
        totals[r][v] += (__builtin_convertvector(products, Vec) - zeros[v] * of_inputs) * scales[v];
      }
    }
  }
  for (int r = 0; r < R; ++r)
    store_panel(layer, panel, rows.scales[row + r], totals[r], out + (row + r) * layer.outputs);
}

}  // namespace

void multiply_groups(const Linear& layer, const Rows& rows, Range block, int64_t panel, float* out) {
  const int64_t bytes = row_groups(layer) * group_bytes(layer.group, layer.bits, layer.width);
  const uint8_t* packed = static_cast<const uint8_t*>(layer.packed) + panel * bytes;
  for_each_tile(block, packed, bytes, [&]<int R>(int64_t row, Ahead ahead) {
    const auto run = layer.bits == 4 ? multiply<R, 4> : multiply<R, 8>;
    run(layer, rows, row, panel, packed, ahead, out);
  });
}

extern "C" {

// Packs one byte for each weight, [outputs, groups * group], and scales and zeros, [outputs, groups], of `width` bytes
// each, as [panels, groups, group_bytes]. Columns beyond `outputs` stay as they are.
void hr_group_pack(const uint8_t* codes, const uint8_t* scales, const uint8_t* zeros, uint8_t* packed, int64_t outputs,
                   int64_t groups, int64_t group, int64_t bits, int64_t width) {
  const int64_t bytes = group_bytes(group, bits, width);
  const int64_t step = 32 / bits;  // inputs of a step of add_codes
  for_each(count_tiles(outputs, kPanel), 1, [&](int64_t panel) {
    for (int64_t column = panel * kPanel; column < std::min(outputs, (panel + 1) * kPanel); ++column)
      for (int64_t g = 0; g < groups; ++g) {
        uint8_t* to = packed + (panel * groups + g) * bytes;
        const int64_t c = column % kPanel;
        std::memcpy(to + c * width, scales + (column * groups + g) * width, width);
        std::memcpy(to + (kPanel + c) * width, zeros + (column * groups + g) * width, width);
        const uint8_t* from = codes + (column * groups + g) * group;
        to += header_bytes(width);
        for (int64_t k = 0; k < group; ++k) {  // [steps, columns, 4], each byte with the codes of one or two quads
          const uint8_t code = static_cast<uint8_t>(from[k] + offset(bits));
          to[(k / step * kPanel + c) * 4 + k % 4] |= static_cast<uint8_t>(code << (k % step / 4 * bits));
        }
      }
  });
}

}  // extern "C"
}  // namespace headrace
