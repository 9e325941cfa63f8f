-- helpers.lua (of exported policies) - the functions that emitted loops call, in C and in Lua. A file gets those that
-- it uses and what these use.

local M = {}

-- name -> { C, Lua }, in the order in which they may call each other.
local list = {
  { "pick", "#define pick(c, a, b) ((c) ? (a) : (b))",
    "local function pick(c, a, b) if c then return a end return b end" },
  { "square", "static double square (double x) { return x * x; }", "local function square(x) return x * x end" },
  { "sign", "static double sign (double x) { return x > 0 ? 1 : x < 0 ? -1 : x; }",
    "local function sign(x) return x > 0 and 1.0 or x < 0 and -1.0 or x end" },
  { "isnan_", "static int isnan_ (double x) { return x != x; }",
    "local function isnan_(x) return x ~= x and 1 or 0 end" },
  { "isinf_", "static int isinf_ (double x) { return x == INFINITY || x == -INFINITY; }",
    "local function isinf_(x) return (x == INFINITY or x == -INFINITY) and 1 or 0 end" },
  { "isfinite_", "static int isfinite_ (double x) { return x - x == 0; }",
    "local function isfinite_(x) return x - x == 0 and 1 or 0 end" },
  { "atleast", "static double atleast (double a, double b) { return a >= b || a != a ? a : b; }",
    "local function atleast(a, b) return (a >= b or a ~= a) and a or b end" },
  { "atmost", "static double atmost (double a, double b) { return a <= b || a != a ? a : b; }",
    "local function atmost(a, b) return (a <= b or a ~= a) and a or b end" },
  { "both", "static int both (double a, double b) { return a != 0 && b != 0; }",
    "local function both(a, b) return a ~= 0 and b ~= 0 and 1 or 0 end" },
  { "either", "static int either (double a, double b) { return a != 0 || b != 0; }",
    "local function either(a, b) return (a ~= 0 or b ~= 0) and 1 or 0 end" },
  { "differ", "static int differ (double a, double b) { return (a != 0) != (b != 0); }",
    "local function differ(a, b) return (a ~= 0) ~= (b ~= 0) and 1 or 0 end" },
  { "whole", "static int64_t whole (double x) {\n  return x >= -0x1p63 && x < 0x1p63 ? (int64_t)x : INT64_MIN;\n}",
    "local function whole(x)\n  if not (x >= -0x1p63 and x < 0x1p63) then return math.mininteger end\n"
      .. "  return math.tointeger(x >= 0 and floor(x) or ceil(x))\nend" },
  { "expm1", "", [[
local function expm1(x) -- Kahan's
  local u = exp(x)
  if u == 1 then return x elseif u - 1 == -1 then return -1.0 elseif u == INFINITY then return u end
  return (u - 1) * x / log(u)
end]] },
  { "log1p", "", [[
local function log1p(x)
  local u = 1 + x
  if u == 1 then return x elseif u == INFINITY then return u end
  return log(u) * x / (u - 1)
end]] },
  { "log2", "", "local function log2(x) return log(x, 2) end" },
  { "rint", "", [[
local function rint(x) -- half to even
  if not (x > -0x1p52 and x < 0x1p52) then return x end
  local low = floor(x)
  local part = x - low
  if part > 0.5 or part == 0.5 and low % 2 == 1 then low = low + 1 end
  return low + 0.0
end]] },
  { "pow", "", "local function pow(x, y) return x ^ y end" },
  { "atan2", "", "local function atan2(y, x) return math.atan(y, x) end" },
  { "tanh", "", [[
local function tanh(x)
  if x > 20 then return 1.0 elseif x < -20 then return -1.0 end
  local t = expm1(2 * x)
  return t / (t + 2)
end]] },
  { "erf", "", [[
local function erf(x) -- DLMF 7.6.2: terms of one sign
  if x > 6 then return 1.0 elseif x < -6 then return -1.0 elseif x ~= x then return x end
  local term, sum, n = x, x, 0
  while term ~= 0 and sum + term ~= sum or n == 0 do
    n = n + 1
    term = term * 2 * x * x / (2 * n + 1)
    sum = sum + term
  end
  return 1.1283791670955126 * exp(-x * x) * sum
end]] },
  { "modulo", "static double modulo (double a, double b) { return a - floor(a / b) * b; }",
    "local function modulo(a, b) return a - floor(a / b) * b end" },
  { "relu", "static double relu (double x) { return x < 0 ? 0 : x; }",
    "local function relu(x) return x < 0 and 0.0 or x end" },
  { "leaky_relu", "static double leaky_relu (double x, double slope) { return x < 0 ? slope * x : x; }",
    "local function leaky_relu(x, slope) return x < 0 and slope * x or x end" },
  { "elu", "static double elu (double x, double alpha) { return x < 0 ? alpha * expm1(x) : x; }",
    "local function elu(x, alpha) return x < 0 and alpha * expm1(x) or x end" },
  { "softplus", "static double softplus (double x, double beta, double threshold) {\n"
      .. "  return x * beta > threshold ? x : log1p(exp(x * beta)) / beta;\n}",
    "local function softplus(x, beta, threshold)\n"
      .. "  return x * beta > threshold and x or log1p(exp(x * beta)) / beta\nend" },
  { "sigmoid", "static double sigmoid (double x) { return 1 / (1 + exp(-x)); }",
    "local function sigmoid(x) return 1 / (1 + exp(-x)) end" },
  { "silu", "static double silu (double x) { return x / (1 + exp(-x)); }",
    "local function silu(x) return x / (1 + exp(-x)) end" },
  { "gelu", "static double gelu (double x) { return 0.5 * x * (1 + erf(x * 0.7071067811865476)); }",
    "local function gelu(x) return 0.5 * x * (1 + erf(x * 0.7071067811865476)) end" },
  { "gelu_tanh", "static double gelu_tanh (double x) {\n"
      .. "  return 0.5 * x * (1 + tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)));\n}",
    "local function gelu_tanh(x)\n"
      .. "  return 0.5 * x * (1 + tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)))\nend" },
  { "quick_gelu", "static double quick_gelu (double x) { return x / (1 + exp(-1.702 * x)); }",
    "local function quick_gelu(x) return x / (1 + exp(-1.702 * x)) end" },
  { "mish", "static double mish (double x) { return x * tanh(x > 20 ? x : log1p(exp(x))); }",
    "local function mish(x) return x * tanh(x > 20 and x or log1p(exp(x))) end" },
  { "dot", [[
static double dot (const float *a, const float *b, int n) { /* sums that wait for none of the others */
  double s0 = 0, s1 = 0, s2 = 0, s3 = 0;
  int i = 0;
  for (; i + 3 < n; i += 4) {
    s0 += (double)a[i] * b[i];
    s1 += (double)a[i + 1] * b[i + 1];
    s2 += (double)a[i + 2] * b[i + 2];
    s3 += (double)a[i + 3] * b[i + 3];
  }
  for (; i < n; i++) s0 += (double)a[i] * b[i];
  return (s0 + s1) + (s2 + s3);
}]], [[
local function dot(a, i, b, j, n)
  local sum = 0.0
  for k = 0, n - 1 do sum = sum + a[i + k] * b[j + k] end
  return sum
end]] },
}

local at = {}
for i, entry in ipairs(list) do at[entry[1]] = i end

-- Helpers that a text names, and what these name.
local function used_in(text, language, found)
  for name in text:gmatch "%f[%w_][%a_][%w_]*" do
    local i = at[name]
    if i and not found[i] then
      found[i] = true
      used_in(list[i][language], language, found)
    end
  end
end

--- The helpers that a text uses.
--- @param text string
--- @param lua boolean
--- @return string
function M.of(text, lua)
  local found, out, language = {}, {}, lua and 3 or 2
  used_in(text, language, found)
  for i, entry in ipairs(list) do
    if found[i] and entry[language] ~= "" then out[#out + 1] = entry[language] .. "\n" end
  end
  return table.concat(out)
end

return M
