-- Conversations of a model with an environment: what is drawn, what is masked, what is learned; and the faults of other
-- systems' loops over turns, each as something that cannot happen here.
local lu = require "luaunit"
local peri = require "perilune"
local steppers = require "steppers"
local rl = peri.rl

local tok, env = steppers.tokenizer, steppers.environment
local comma = env.stop[2]

local function talks(more, n)
  local how = { group = 4, environment = env, max_turns = 3, max_new_tokens = 14 }
  for k, v in pairs(more or {}) do how[k] = v end
  local rows = table.move(steppers.prompts, 1, n or 8, 1, {})
  peri.seed(11)
  local model = how.model or steppers.model(5)
  how.model = nil
  peri.seed(7)
  return rl.rollout(model, tok, rows, how.reward_of or steppers.reward, how), model
end

local settings = { {}, { top_k = 3 }, { top_p = 0.7, temperature = 1.3 }, { repetition_penalty = 1.4 },
  { frequency_penalty = 0.7, presence_penalty = 0.3 }, { min_new_tokens = 2 }, { min_p = 0.2, logit_bias = { [4] = 1 } },
  { seed = 5 }, { max_turn_tokens = 2 }, { greedy = true } }
for _, o in ipairs(settings) do o.sampling = not o.greedy and "renormalised" or nil end

TestConversations = {}

-- The law that all else stands on: an environment that never answers changes nothing.
function TestConversations.test_one_that_is_never_answered_is_a_plain_rollout()
  for k, more in ipairs(settings) do
    if not more.max_turn_tokens then
      local own = { environment = { reply = function () end } }
      for name, v in pairs(more) do own[name] = v end
      local silent, state = talks(own), peri.rng_state()
      peri.seed(11)
      local model = steppers.model(5)
      peri.seed(7)
      local how = { group = 4, max_new_tokens = 14 }
      for name, v in pairs(more) do how[name] = v end
      local plain = rl.rollout(model, tok, table.move(steppers.prompts, 1, 8, 1, {}), steppers.reward, how)
      lu.assertEquals(peri.rng_state(), state, k)
      for _, name in ipairs { "ids", "mask", "logprobs" } do
        lu.assertEquals(silent[name]:tolist(), plain[name]:tolist(), name .. k)
      end
      for _, name in ipairs { "texts", "tokens", "ended", "total" } do lu.assertEquals(silent[name], plain[name]) end
    end
  end
end

-- Each stands at another turn than its neighbours; how many run at once moves no token.
function TestConversations.test_how_many_run_at_once_changes_nothing()
  local whole = talks()
  local turns = {}
  for _, talk in ipairs(whole.conversations) do turns[talk.turn] = (turns[talk.turn] or 0) + 1 end
  lu.assertTrue(turns[1] and turns[2] and turns[3] and true)
  for _, rows in ipairs { 1, 2, 5, 31 } do
    local some = talks { rows = rows }
    for _, name in ipairs { "ids", "mask", "logprobs" } do
      lu.assertEquals(some[name]:tolist(), whole[name]:tolist(), name .. rows)
    end
  end
end

-- What was sampled is what the training pass sees, whatever was drawn from; only what the model drew is marked.
function TestConversations.test_the_training_pass_agrees_with_every_turn()
  for k, more in ipairs(settings) do
    local batch, model = talks(more)
    local _ <close> = peri.no_grad()
    local logp = model:token_logprobs(batch.sequences, batch.from, { temperature = more.temperature,
      support = batch.support })
    if not more.greedy then
      lu.assertEquals(logp:sub(batch.logprobs):masked_fill(batch.mask:eq(0), 0):abs():max():item(), 0, k)
    end
    local masks, logprobs, ids, answered = batch.mask:tolist(), batch.logprobs:tolist(), batch.ids:tolist(), 0
    for i, list in ipairs(batch.tokens) do
      local at, talk, reply = 1, batch.conversations[i], 0
      for t = 1, #masks[i] do
        lu.assertEquals(masks[i][t] == 0 and logprobs[i][t] or 0, 0)
        if t > #list then lu.assertEquals(masks[i][t], 0) end
      end
      for t, id in ipairs(list) do -- a reply is two tokens behind each comma but the last
        lu.assertEquals(ids[i][batch.from - 1 + t], id)
        if reply > 0 then
          lu.assertEquals(masks[i][t], 0)
          reply, answered = reply - 1, answered + 1
        else
          lu.assertEquals(masks[i][t], 1)
          if id == comma and at < talk.turn then reply, at = 2, at + 1 end
        end
      end
    end
    lu.assertTrue(answered > 0, k)
  end
end

-- ---- what is learned ----

local function update_of(batch, model, weight, advantage)
  model:zero_grad()
  local logp = model:token_logprobs(batch.sequences, batch.from)
  local leaf = logp:detach():requires_grad_()
  peri.loss.policy(leaf, batch.logprobs, advantage, weight):backward()
  peri.loss.policy(logp, batch.logprobs, advantage, weight):backward()
  local list = {}
  for i, p in ipairs(model:parameters()) do list[i] = p.grad:clone() end
  return leaf, list
end

local function furthest(a, b)
  local most = 0
  for i, x in ipairs(a) do most = math.max(most, x:sub(b[i]):abs():max():item()) end
  return most
end

function TestConversations.test_what_was_answered_has_no_gradient()
  local batch, model = talks()
  local advantage = rl.advantages(batch)
  local logp, masked = update_of(batch, model, batch.mask, advantage)
  local left_out = batch.mask:eq(0)
  lu.assertEquals(logp.grad:masked_fill(left_out:logical_not(), 0):abs():max():item(), 0) -- to the bit
  lu.assertTrue(logp.grad:abs():max():item() > 0)
  -- the log-probabilities do not depend on the mask: what was answered is read
  local all = batch.logprobs:ne(0):logical_or(batch.mask:eq(1)):to "f32"
  for i, list in ipairs(batch.tokens) do all:select(1, i):narrow(1, 1, #list):fill_(1) end
  local unmasked, more = update_of(batch, model, all, rl.advantages(batch):sum(2, true):sign():expand(all.shape))
  lu.assertEquals(logp:detach():tolist(), unmasked:detach():tolist())
  lu.assertTrue(furthest(masked, more) > 1e-4) -- the test can see a difference
  -- by hand: the sum over what was drawn of ratio 1 times advantage times the gradient of its log-probability
  model:zero_grad()
  local again = model:token_logprobs(batch.sequences, batch.from):reshape { -1 }
  local drawn = batch.mask:reshape({ -1 }):nonzero():reshape { -1 }
  local a = advantage:reshape({ -1 }):index_select(drawn, 1)
  again:index_select(drawn, 1):mul(a):sum():neg():div(drawn:numel()):backward()
  local by_hand = {}
  for i, p in ipairs(model:parameters()) do by_hand[i] = p.grad:clone() end
  lu.assertTrue(furthest(masked, by_hand) < 1e-6)
end

-- What was answered is read: other answers, other log-probabilities behind them and none before.
function TestConversations.test_what_was_answered_is_read()
  local batch, model = talks()
  local _ <close> = peri.no_grad()
  local i, first
  for k, list in ipairs(batch.mask:tolist()) do
    for t = 1, #batch.tokens[k] - 2 do
      if list[t] == 0 and list[t + 1] == 0 and list[t + 2] == 1 and not i then i, first = k, t end
    end
  end
  local one = batch.sequences:rows(i, 1)
  local logp = model:token_logprobs(one, batch.from):tolist()[1]
  local ids = one.ids:clone()
  ids:select(1, 1):narrow(1, batch.from - 1 + first, 1):fill_(13)
  local other = peri.batch.by_bounds(ids, one:bounds())
  local changed = model:token_logprobs(other, batch.from):tolist()[1]
  lu.assertEquals(table.move(logp, 1, first - 1, 1, {}), table.move(changed, 1, first - 1, 1, {}))
  lu.assertNotEquals(logp[first + 2], changed[first + 2])
end

function TestConversations.test_the_prompt_read_once_gives_the_same_update()
  local function norm(more)
    local stepper = steppers.make("grpo-talk", more)
    peri.seed(7)
    local row = stepper:step()
    lu.assertEquals(row["sampling/sampling_logp_difference/max"], 0)
    return row.grad_norm
  end
  lu.assertAlmostEquals(norm { shared_prompt = true }, norm {}, 1e-5)
end

function TestConversations.test_every_preset_learns_from_them()
  for name in pairs(rl.presets) do
    local stepper = steppers.make("preset-" .. name, { environment = env, max_turns = 3, max_new_tokens = 12,
      min_new_tokens = 1 })
    peri.seed(7)
    for _ = 1, 2 do
      local row = stepper:step()
      lu.assertEquals(row["sampling/sampling_logp_difference/max"], 0, name)
      lu.assertTrue(row["tools/call_frequency"] > 0 and row.grad_norm > 0 and row.grad_norm < math.huge, name)
    end
  end
end

-- ---- limits ----

-- How each ended, by what was given for it.
function TestConversations.test_limits_end_a_conversation_and_say_so()
  local function every(more, check)
    local batch, model = talks(more)
    for i, talk in ipairs(batch.conversations) do
      check(talk, batch.tokens[i], batch.ended[i], model)
      lu.assertEquals(batch.ended[i], talk.over == "stop")
    end
    return rl.summary(batch)
  end
  local always = { stop = env.stop, reply = function () return "12:" end }
  local seen = every({ environment = always, max_turns = 2, max_new_tokens = 40 }, function (talk, tokens)
    lu.assertTrue(talk.turn <= 2 and #tokens <= 40)
    if talk.over == "turns" then
      lu.assertEquals(talk.turn, 2)
      lu.assertTrue(tokens[#tokens] == comma or tokens[#tokens] == tok.eos) -- the reply that nobody reads is left out
    end
  end)
  lu.assertTrue(seen["conversations/cut_ratio"] > 0)
  -- a reply that does not fit ends it; what was said stays
  local long = { stop = env.stop, reply = function () return ("1"):rep(30) end }
  every({ environment = long }, function (talk, tokens)
    lu.assertTrue(#tokens <= 14 and talk.turn == 1 and talk.over == "length")
  end)
  -- no turn is longer than it may be
  every({ max_turn_tokens = 2, environment = always }, function (talk) lu.assertTrue(#talk.ids <= 2) end)
  -- nor a sequence longer than the context
  every({ environment = always, max_turns = 100, max_new_tokens = 1000 }, function (talk, tokens, _, model)
    lu.assertTrue(#tokens + #talk.row.prompt + 1 <= model.config.max_position_embeddings)
  end)
end

-- trl#4976: answers that were cut are left out whole, and lengths are still those of what was said.
function TestConversations.test_a_conversation_that_was_cut_can_be_left_out()
  local batch = talks { max_turns = 2 }
  local _, weight = rl.advantages(batch, { mask_truncated = true })
  local kept, mask = weight:sum(2):tolist(), batch.mask:sum(2):tolist()
  for i, ended in ipairs(batch.ended) do lu.assertEquals(kept[i], ended and mask[i] or 0) end
  local lengths = 0
  for _, n in ipairs(mask) do lengths = lengths + n / #mask end
  lu.assertAlmostEquals(rl.summary(batch)["completions/mean_length"], lengths, 1e-6)
end

-- trl#4974: padding is known, not guessed from ids: it may be the id that ends a turn.
function TestConversations.test_padding_may_be_the_end_token()
  local same = setmetatable({ pad = tok.eos }, { __index = tok })
  local rows, how = steppers.prompts, { group = 4, environment = env, max_turns = 3, max_new_tokens = 14 }
  local model = steppers.model(5)
  peri.seed(7)
  local a = rl.rollout(model, tok, rows, steppers.reward, how)
  peri.seed(7)
  local b = rl.rollout(model, same, rows, steppers.reward, how)
  lu.assertEquals(a.tokens, b.tokens)
  lu.assertEquals(a.mask:tolist(), b.mask:tolist())
  local ends = 0
  for i, list in ipairs(b.tokens) do
    if list[#list] == tok.eos then
      ends = ends + 1
      lu.assertEquals(b.mask:tolist()[i][#list], 1)
    end
  end
  lu.assertTrue(ends > 0)
end

-- trl#5224, #5144: what was drawn is read again as it was drawn, though the tokenizer would write it otherwise.
function TestConversations.test_nothing_is_tokenised_again()
  local texts = {}
  local odd = setmetatable({ decode = function () return "?" end, encode_batch = function (_, list, o)
    for _, text in ipairs(list) do texts[#texts + 1] = text end
    return tok:encode_batch(list, o)
  end }, { __index = tok })
  local model = steppers.model(5)
  local rows = table.move(steppers.prompts, 1, 4, 1, {})
  local how = { group = 4, environment = env, max_turns = 3, max_new_tokens = 14 }
  peri.seed(7)
  local plain = rl.rollout(model, tok, rows, function () return 0 end, how)
  peri.seed(7)
  local batch = rl.rollout(model, odd, rows, function () return 0 end, { group = 4, max_turns = 3, max_new_tokens = 14,
    environment = { stop = env.stop, reply = function (_, talk)
      return talk.ids[#talk.ids] == comma and tok:encode "0:" or nil
    end } })
  for _, text in ipairs(texts) do lu.assertNotStrContains(text, "?") end
  lu.assertEquals(#texts, #rows)
  for i, list in ipairs(batch.tokens) do -- the same up to the first reply
    local t = 1
    while list[t] and batch.mask:tolist()[i][t] == 1 do
      lu.assertEquals(list[t], plain.tokens[i][t])
      t = t + 1
    end
  end
end

-- ---- environments ----

function TestConversations.test_an_environment_opens_owns_its_reward_and_answers_side_by_side()
  local widths = {}
  local own = { stop = env.stop, batch = true, open = function (_, talk)
    talk.goal = talk.row.goal
    return ("%d:"):format(talk.row.goal)
  end, reply = function (_, list)
    widths[#widths + 1] = #list
    local out = {}
    for i, talk in ipairs(list) do out[i] = talk.ids[#talk.ids] == comma and { 5, 6 } end
    return out
  end, reward = { { "turns", function (_, _, _, talk) return talk.turn end },
    { "goal", function (row, _, _, talk) return talk.goal - row.goal end, 2 } } }
  local rows = { { goal = 3 }, { goal = 12 } }
  local batch = rl.rollout(steppers.model(5), tok, rows, nil, { group = 4, environment = own, max_turns = 3,
    max_new_tokens = 12 })
  lu.assertEquals(batch.names, { "turns", "goal" })
  lu.assertEquals(batch.rewards.goal, { 0, 0, 0, 0, 0, 0, 0, 0 })
  for i, talk in ipairs(batch.conversations) do lu.assertEquals(batch.total[i], talk.turn) end
  lu.assertEquals(batch.sequences:unpad()[5][1], tok:encode "1"[1])
  lu.assertEquals(batch.rows[1], rows[1])
  lu.assertTrue(math.max(table.unpack(widths)) > 1)
  local stepper = steppers.make("grpo", { environment = own, rows = rows, max_turns = 3, max_new_tokens = 12 })
  stepper.reward = nil
  lu.assertTrue(stepper:step()["conversations/turns"] >= 1)
end

function TestConversations.test_what_is_wrong_with_an_environment_is_said()
  local function bad(message, environment, more)
    local how = { environment = environment, max_new_tokens = 12 }
    for k, v in pairs(more or {}) do how[k] = v end
    lu.assertErrorMsgContains(message, talks, how)
  end
  local function says(value) return { stop = env.stop, reply = function () return value end } end
  bad("environment is 3, expected table", 3)
  bad("environment has no reply", {})
  bad("environment has a stop that is a number", { reply = print, stop = 3 })
  bad("reply in turn 1 of the prompt \"0\": a number, expected a text or a list of ids", says(3))
  bad("an empty list", says {})
  bad("a text without tokens; false ends a conversation", says "")
  bad("entry 2 is x, expected an id", says { 4, "x" })
  bad("the environment's reply is a nil, expected a list with one for each of", { batch = true, stop = env.stop,
    reply = function () end })
  bad("the list has none for conversation 1", { batch = true, stop = env.stop, reply = function () return {} end })
  -- ids that nobody has, in whatever place
  local size = tok.size
  for _, id in ipairs { -1, size, 1 << 40, 1.5, "x" } do
    bad(("entry 2 is %s, expected an id from 0 to %d"):format(id, size - 1), says { 4, id })
    bad(("environment's stop has %s as its entry 2, expected an id"):format(id), { reply = print, stop = { 4, id } })
  end
  bad("the environment's stop is empty", { reply = print, stop = {} })
  bad("the environment's stop has the field comma, expected a list of ids", { reply = print, stop = { 4, comma = 3 } })
  local function longer(extra)
    return { batch = true, stop = env.stop, reply = function (_, list)
      local out = { [extra == "x" and "x" or #list + extra] = false }
      for i = 1, #list do out[i] = false end
      return out
    end }
  end
  for _, extra in ipairs { 1, 7, "x" } do bad("expected one for each of", longer(extra)) end
  -- a tokenizer that is not the rollout's
  local function of(letters, marks) -- the same size, or another
    return { reply = function () end, stop = env.stop, tokenizer = peri.text.chars(letters, { separator = true }), marks = marks }
  end
  bad("the environment's tokenizer is another than the rollout's: ", of "0123")
  bad('other ids of "1"', of("9876543210,:", { "1" }))
  lu.assertEquals(#talks { environment = of("0123456789,:", { "1" }), max_new_tokens = 4 }.texts, 32)
  lu.assertEquals(#talks { environment = { reply = function () end, stop = env.stop, tokenizer = tok }, max_new_tokens = 4 }.texts, 32)
  local n = 0
  bad("opens two conversations of row 1 with different prompts", { reply = print, open = function ()
    n = n + 1
    return ("%d"):format(n % 10)
  end })
  bad("opens row 1 with a number", { reply = print, open = function () return 3 end })
  lu.assertErrorMsgContains("max_turns is 2 and there is no environment", rl.rollout, steppers.model(5), tok,
    steppers.prompts, steppers.reward, { max_turns = 2 })
  lu.assertErrorMsgContains("there is no reward, and the environment has none", rl.rollout, steppers.model(5), tok,
    steppers.prompts, nil, { environment = env })
  lu.assertErrorMsgContains("there is no reward", rl.rollout, steppers.model(5), tok, steppers.prompts)
  lu.assertErrorMsgContains("grpo: max_turns is 2 and there is no environment", steppers.make, "grpo", { max_turns = 2 })
  lu.assertErrorMsgContains("ppo: environment has no reply", steppers.make, "ppo", { environment = {} })
  lu.assertErrorMsgContains("num_beams", rl.rollout, steppers.model(5), tok, steppers.prompts, steppers.reward,
    { environment = env, num_beams = 2 })
  lu.assertErrorMsgContains("top_logprobs is 2, conversations have 0", talks, { top_logprobs = 2 })
end

os.exit(lu.LuaUnit.run())
