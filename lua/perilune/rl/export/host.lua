-- host.lua (of exported policies) - what stands around the network in the file: the generator, the choice of actions,
-- what the host calls. The arithmetic is that of runtime/env/policy.c, so that the same seed draws the same actions.

local M = {}

-- $NAME$ of a text from a table; $IF name$ ... $END$ stays where the table has name.
local function filled(text, values)
  for _ = 1, 3 do
    text = text:gsub("[ ]*%$IF (%w+)%$\n(.-)%$END %1%$\n", function (name, inside)
      return values[name] and inside or ""
    end)
  end
  return (text:gsub("%$(%w+)%$", function (key)
    local v = values[key]
    if v == nil then error("no value for " .. key) end
    return tostring(v)
  end))
end
M.filled = filled

-- ---- C ----

M.c_declarations = [[
#ifndef $UPPER$_POLICY_H
#define $UPPER$_POLICY_H
#include <stdint.h>
#ifdef __cplusplus
extern "C" {
#endif

enum {
  $UPPER$_OBS = $OBSSIZE$,     /* numbers of an observation */
  $UPPER$_ACTION = $ACTIONSIZE$,  /* numbers of an action */
  $UPPER$_CHOICES = $CHOICES$ /* bytes of a row's mask; 0: there is none */
};

/* What $NAME$_act returns. */
enum {
  $UPPER$_OK,
  $UPPER$_ILLEGAL, /* no action of the row is legal */
  $UPPER$_NAN,     /* the network gave no number */
  $UPPER$_RANGE    /* the observation is none of those that there are */
};

/* A generator and room to work in: one for each thread. Zeros are seed 0. */
typedef struct $NAME$_agent {
  uint64_t seed, offset;
  int row; /* that the last call failed at */
$WORK$} $NAME$_agent;
$IF memory$

/* What a row remembers; zeros before an episode. */
typedef struct $NAME$_memory {
$MEMORY$} $NAME$_memory;
$END memory$

/* Begin the actions that a seed draws: those of peri_policy_act in a context of that seed. */
void $NAME$_seed ($NAME$_agent *a, uint64_t seed);
$IF memory$
/* Before the first observation of an episode: n rows forget. */
void $NAME$_restart ($NAME$_memory *memory, int n);
$END memory$
/* Actions of n rows. obs: n rows of $OBSTEXT$.$MASKTEXT$
** deterministic: $BESTTEXT$; else one is drawn.
** action: n rows of $ACTIONTEXT$ are written.$MEMTEXT$ Returns $UPPER$_OK, or why
** a->row has no action: rows before it have theirs$MEMFAIL$, it and those behind it are as they were. */
int $NAME$_act ($NAME$_agent *a, $MEMARG$int n, const $OBSTYPE$ *obs, $MASKARG$int deterministic,
  $ACTIONTYPE$ *action);

#ifdef __cplusplus
}
#endif
#endif
]]

M.c_generator = [[
/* Philox4x32-10 (Salmon et al., SC11): block `at` of a call. */
static void draw (const $NAME$_agent *a, uint64_t offset, uint64_t at, uint32_t w[4]) {
  uint32_t c0 = (uint32_t)at, c1 = (uint32_t)(at >> 32);
  uint32_t c2 = (uint32_t)offset, c3 = (uint32_t)(offset >> 32);
  uint32_t k0 = (uint32_t)a->seed, k1 = (uint32_t)(a->seed >> 32);
  int round;
  for (round = 0; round < 10; round++) {
    uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
    uint32_t n0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0, n2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
    c1 = (uint32_t)p1;
    c3 = (uint32_t)p0;
    c0 = n0;
    c2 = n2;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  w[0] = c0;
  w[1] = c1;
  w[2] = c2;
  w[3] = c3;
}

static double unit (uint32_t high, uint32_t low) { /* [0, 1) */
  return (double)((((uint64_t)high << 32) | low) >> 11) * 0x1p-53;
}

]]

M.c_uniform = [[
static double uniform (const $NAME$_agent *a, uint64_t offset, uint64_t at) {
  uint32_t w[4];
  draw(a, offset, at, w);
  return unit(w[0], w[1]);
}

]]

M.c_heads = {}

M.c_heads.choose = [[
/* One of n; -1: none is legal; -2: a NaN. u: where in [0, 1) it is drawn. */
static int64_t choose (const float *logit, const unsigned char *legal, int n, int best, double u) {
  double top = -INFINITY, sum = 0;
  int64_t at = -1;
  int i;
  for (i = 0; i < n; i++) {
    if (legal && !legal[i]) continue;
    if (logit[i] != logit[i]) return -2;
    if (at < 0 || logit[i] > top) top = logit[i], at = i;
  }
  if (best || at < 0) return at;
  for (i = 0; i < n; i++)
    if (!legal || legal[i]) sum += exp(logit[i] - top);
  u *= sum;
  for (i = 0; i < n; i++) {
    double w;
    if (legal && !legal[i]) continue;
    w = exp(logit[i] - top);
    if (w > 0) at = i;
    if ((u -= w) < 0) break;
  }
  return at;
}

static int act_row (const $NAME$_agent *a, uint64_t offset, int row, const float *x,
                    const unsigned char *legal, int best, int64_t *action) {
  static const int count[$PARTS$] = { $COUNTS$ };
  int64_t chosen[$PARTS$];
  int k, c;
  for (k = 0; k < $PARTS$; k++) {
$IF categorical$
    double u = best ? 1 : uniform(a, offset, (uint64_t)row * $PARTS$ + (uint64_t)k);
    int64_t at = choose(x, legal, count[k], best, u);
$END categorical$
$IF greedy$
    const double epsilon = $EPSILON$;
    double u = best || epsilon == 0 ? 1 : uniform(a, offset, (uint64_t)row * $PARTS$ + (uint64_t)k);
    int64_t at = choose(x, legal, count[k], 1, u);
    if (at >= 0 && u < epsilon) { /* any legal one */
      int64_t left = 0, skip;
      for (c = 0; c < count[k]; c++) left += !legal || legal[c];
      skip = (int64_t)(u / epsilon * (double)left);
      for (c = 0; c < count[k]; c++)
        if ((!legal || legal[c]) && skip-- == 0) at = c;
    }
$END greedy$
    if (at < 0) return at == -1 ? $UPPER$_ILLEGAL : $UPPER$_NAN;
    chosen[k] = at + $START$;
    x += count[k];
    if (legal) legal += count[k];
  }
  for (c = 0; c < $PARTS$; c++) action[c] = chosen[c];
  return $UPPER$_OK;
}

]]

M.c_heads.flip = [[
static int act_row (const $NAME$_agent *a, uint64_t offset, int row, const float *x, int best, uint8_t *action) {
  int i;
  for (i = 0; i < $SIZE$; i++)
    if (x[i] != x[i]) return $UPPER$_NAN;
  for (i = 0; i < $SIZE$; i++) {
    uint64_t at = (uint64_t)row * $SIZE$ + (uint64_t)i;
    action[i] = (uint8_t)(best ? x[i] > 0 : uniform(a, offset, at) < 1 / (1 + exp(-(double)x[i])));
  }
  return $UPPER$_OK;
}

]]

M.c_heads.move = [[
$IF drawn$
/* A standard normal number (Box and Muller, 1958). */
static double normal (const $NAME$_agent *a, uint64_t offset, uint64_t at) {
  uint32_t w[4];
  draw(a, offset, at, w);
  return sqrt(-2 * log(1 - unit(w[0], w[1]))) * cos(6.283185307179586 * unit(w[2], w[3]));
}

$END drawn$
static int act_row ($IF drawn$
const $NAME$_agent *a, uint64_t offset, int row, int best, const float *log_std,
                    $END drawn$
const float *x, $ACTIONTYPE$ *action) {
  static const double low[$SIZE$] = { $LOWS$ }, high[$SIZE$] = { $HIGHS$ };
  double moved[$SIZE$];
  int i;
  for (i = 0; i < $SIZE$; i++) {
    double v = x[i];
$IF drawn$
    if (!best) v += exp((double)log_std[i]) * normal(a, offset, (uint64_t)row * $SIZE$ + (uint64_t)i);
$END drawn$
$IF squashed$
    v = tanh(v);
$END squashed$
$IF stretched$
    v = low[i] + (v + 1) * 0.5 * (high[i] - low[i]);
$END stretched$
    if (v != v) return $UPPER$_NAN;
    moved[i] = v < low[i] ? low[i] : v > high[i] ? high[i] : v;
  }
  for (i = 0; i < $SIZE$; i++) action[i] = ($ACTIONTYPE$)moved[i];
  return $UPPER$_OK;
}

]]

M.c_act = [[
void $NAME$_seed ($NAME$_agent *a, uint64_t seed) {
  a->seed = seed;
  a->offset = 0;
}

$IF memory$
void $NAME$_restart ($NAME$_memory *memory, int n) {
  static const $NAME$_memory nothing;
  int i;
  for (i = 0; i < n; i++) memory[i] = nothing;
}

$END memory$
int $NAME$_act ($NAME$_agent *a, $MEMARG$int n, const $OBSTYPE$ *obs, $MASKARG$int deterministic,
  $ACTIONTYPE$ *action) {
$IF random$
  uint64_t offset = a->offset;
$END random$
  int i;
  if (!deterministic) a->offset++;
  for (i = 0; i < n; i++) {
    int status;
    a->row = i;
    status = network(a, $MEMROW$obs + (int64_t)i * $OBSSIZE$);
    if (status != OK) return $UPPER$_RANGE;
    status = act_row($ROWARGS$action + (int64_t)i * $ACTIONSIZE$);
    if (status != $UPPER$_OK) return status;
$IF memory$
    remember(a, memory + i);
$END memory$
  }
  return $UPPER$_OK;
}
]]

-- ---- Lua ----

M.lua_generator = [[
-- Philox4x32-10 (Salmon et al., SC11): block `at` of a call.
local function draw(agent, offset, at)
  local c0, c1, c2, c3 = at & 0xffffffff, at >> 32, offset & 0xffffffff, offset >> 32
  local k0, k1 = agent.seed & 0xffffffff, agent.seed >> 32
  for _ = 1, 10 do
    local p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
    c0, c1, c2, c3 = (p1 >> 32) ~ c1 ~ k0, p1 & 0xffffffff, (p0 >> 32) ~ c3 ~ k1, p0 & 0xffffffff
    k0, k1 = (k0 + 0x9E3779B9) & 0xffffffff, (k1 + 0xBB67AE85) & 0xffffffff
  end
  return c0, c1, c2, c3
end

local function unit(high, low) return ((high << 32 | low) >> 11) * 0x1p-53 end -- [0, 1)

]]

M.lua_uniform = [[
local function uniform(agent, offset, at)
  local high, low = draw(agent, offset, at)
  return unit(high, low)
end

]]

M.lua_heads = {}

M.lua_heads.choose = [[
-- One of n from place `from` on; nil and why not. u: where in [0, 1) it is drawn.
local function choose(x, from, legal, before, n, best, u)
  local top, sum, at = -INFINITY, 0.0, nil
  for i = 0, n - 1 do
    if not legal or legal[before + i + 1] then
      local v = x[from + i]
      if v ~= v then return nil, "the network gave NaN" end
      if not at or v > top then top, at = v, i end
    end
  end
  if not at then return nil, "no action is legal" end
  if best then return at end
  for i = 0, n - 1 do
    if not legal or legal[before + i + 1] then sum = sum + exp(x[from + i] - top) end
  end
  u = u * sum
  for i = 0, n - 1 do
    if not legal or legal[before + i + 1] then
      local w = exp(x[from + i] - top)
      if w > 0 then at = i end
      u = u - w
      if u < 0 then break end
    end
  end
  return at
end

local count = { $COUNTS$ }

local function act_row(agent, offset, row, x, from, legal, best)
  local action, before = {}, 0
  for k, n in ipairs(count) do
$IF categorical$
    local u = best and 1 or uniform(agent, offset, row * $PARTS$ + k - 1)
    local at, why = choose(x, from + before, legal, before, n, best, u)
$END categorical$
$IF greedy$
    local epsilon = $EPSILON$
    local u = (best or epsilon == 0) and 1 or uniform(agent, offset, row * $PARTS$ + k - 1)
    local at, why = choose(x, from + before, legal, before, n, true, u)
    if at and u < epsilon then -- any legal one
      local left = {}
      for c = 0, n - 1 do
        if not legal or legal[before + c + 1] then left[#left + 1] = c end
      end
      at = left[floor(u / epsilon * #left) + 1]
    end
$END greedy$
    if not at then return nil, why end
    action[k] = at + $START$
    before = before + n
  end
  return $RETURN$
end

]]

M.lua_heads.flip = [[
local function act_row(agent, offset, row, x, from, _, best)
  local action = {}
  for i = 0, $SIZE$ - 1 do
    local v = x[from + i]
    if v ~= v then return nil, "the network gave NaN" end
    local set = v > 0
    if not best then set = uniform(agent, offset, row * $SIZE$ + i) < 1 / (1 + exp(-v)) end
    action[i + 1] = set and 1 or 0
  end
  return action
end

]]

M.lua_heads.move = [[
$IF drawn$
-- A standard normal number (Box and Muller, 1958).
local function normal(agent, offset, at)
  local a, b, c, d = draw(agent, offset, at)
  return sqrt(-2 * log(1 - unit(a, b))) * cos(6.283185307179586 * unit(c, d))
end

$END drawn$
local low, high = { $LOWS$ }, { $HIGHS$ }

local function act_row($LUAARGS$)
  local action = {}
  for i = 0, $SIZE$ - 1 do
    local v, least, most = x[from + i], low[i + 1], high[i + 1]
$IF drawn$
    if not best then v = v + exp(log_std[spread + i]) * normal(agent, offset, row * $SIZE$ + i) end
$END drawn$
$IF squashed$
    v = tanh(v)
$END squashed$
$IF stretched$
    v = least + (v + 1) * 0.5 * (most - least)
$END stretched$
    if v ~= v then return nil, "the network gave NaN" end
    action[i + 1] = v < least and least or v > most and most or v
  end
  return action
end

]]

M.lua_act = [[
-- The numbers of an observation, from place 0 on.
local function flat(obs, into, n)
  if type(obs) ~= "table" then
    into[n] = obs
    return n + 1
  end
  for i = 1, #obs do n = flat(obs[i], into, n) end
  return n
end

local Agent = {}
Agent.__index = Agent

local function row_of(self, row, obs, level)
  local n = flat(obs, self.obs, 0)
  if n ~= $OBSSIZE$ then error(("an observation has $OBSSIZE$ numbers, not %d"):format(n), level) end
  for i = 0, n - 1 do
    local kind = type(self.obs[i])
    if kind ~= "number" then error(("number %d of the observation is a %s"):format(i + 1, kind), level) end
  end
  if not self.memory[row] then self.memory[row] = forgotten() end
  if network(self.work, self.memory[row], self.obs) ~= OK then
    return nil, "the observation is none of those that there are"
  end
  return self.memory[row]
end

local function act(self, row, offset, obs, best, legal, level)
  local memory, why = row_of(self, row, obs, level + 1)
$IF counted$
  if legal and #legal ~= $LOGITS$ then
    error(("legal has %d entries, expected $LOGITS$"):format(#legal), level)
  end
$END counted$
  if not memory then return nil, why end
  local work = self.work
  local action, message = act_row($LUACALL$)
  if action == nil then return nil, message end
  remember(work, memory)
  return action
end

--- The action for an observation, a number or a list (nested ones are read in order); nil and why there is none: the
--- network gave NaN, no action is legal, there is no such state. What the caller gets wrong raises: an observation with
--- other than $OBSSIZE$ numbers, a list of legal actions of another length.
--- deterministic: $BESTTEXT$; else one is drawn. legal: which actions are, a list of true and false.
function Agent:act(obs, deterministic, legal)
  local offset = self.offset
  if not deterministic then self.offset = offset + 1 end
  return act(self, 0, offset, obs, deterministic or false, legal, 2)
end

--- The same for a list of observations, each with a memory of its own, if the policy has one. A list of actions, or
--- nil, why, and which row had none.
function Agent:act_rows(list, deterministic, legal)
  local offset, actions = self.offset, {}
  if not deterministic then self.offset = offset + 1 end
  for i, obs in ipairs(list) do
    local action, why = act(self, i - 1, offset, obs, deterministic or false, legal and legal[i], 3)
    if action == nil then return nil, why, i end
    actions[i] = action
  end
  return actions
end

--- What the network says of an observation, from which the action is chosen.
function Agent:values(obs)
  local memory, why = row_of(self, 0, obs, 3)
  if not memory then return nil, why end
  local work, out = self.work, {}
  local x, from = $HEADX$
  for i = 0, $HEADSIZE$ - 1 do out[i + 1] = x[from + i] end
  remember(work, memory)
  return out
end

--- Before the first observation of an episode: row (from 1 on), or all of them, forget.
function Agent:restart(row)
  if row then self.memory[row - 1] = nil else self.memory = {} end
end

--- Begin the actions that a seed draws: those of the policy file after peri.seed(seed).
function Agent:seed_with(seed) self.seed, self.offset = seed, 0 end

--- An agent: a generator, and what rows remember.
function M.new(seed)
  return setmetatable({ seed = seed or 0, offset = 0, obs = {}, work = work(), memory = {} }, Agent)
end

return M
]]

return M
