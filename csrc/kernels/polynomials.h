// Coefficients shared by all instruction sets, evaluated by Horner's rule with fma, highest power first.
#pragma once

namespace agnews_fast {

// exp(r) on |r| <= ln(2) / 2: minimax, relative error 1.9e-9 before rounding to float.
// exp(x) = 2^n * P(x - n ln 2), n = rint(x * log2(e)); ln 2 in two parts so that n * ln 2 loses nothing (Cody & Waite).
inline constexpr float kExp[] = {0.0013836845f, 0.008374816f, 0.041668225f, 0.1666642f, 0.4999999f, 1.0f, 1.0f};
inline constexpr float kLog2E = 1.44269504f;
inline constexpr float kLn2High = 0.693145752f;    // 0x1.62e4p-1: n * kLn2High is exact for |n| < 2^9
inline constexpr float kLn2Low = 1.42860677e-06f;  // ln 2 - kLn2High
inline constexpr float kExpLowest = -87.0f;        // below it exp is taken as exp(-87) = 1.6e-38, still a normal number

// 2^t = 2^n * P(t - n), n = rint(t): minimax on |t - n| <= 1/2, relative error 1.1e-7; P(0) = 1 and P <= 1 below 0.
inline constexpr float kExp2[] = {0.0013264727f, 0.009671513f, 0.055507336f, 0.24022242f, 0.693147f, 1.0f};
inline constexpr float kExp2Lowest = -64.0f;  // below it 2^t is taken as 2^-64, which no sum or weight notices

// Phi(t) = 0.5 + t * P(2 t^2 / clamp^2 - 1), the normal distribution function on |t| <= clamp; the fit minimises the
// error of t * Phi(t), 1.9e-4 at most: less than a hundredth of a step of what quantises it, where a row's values span more
// than 2.4. P(1) is such that Phi is 0 and 1 at the clamp and so beyond it.
inline constexpr float kGeluClamp = 4.0f;
inline constexpr float kGeluArgument = 0.125f;  // 2 / clamp^2
inline constexpr float kGelu[] = {0.0059213755f, -0.016534539f, 0.0241479f, -0.03547605f,
                                  0.055395104f,  -0.08442455f,  0.17597076f};

}  // namespace agnews_fast
