-- algo.transfer: which parts of a network learn, and from when on.
local lu = require "luaunit"
local peri = require "perilune"

local nn, optim, algo = peri.nn, peri.optim, peri.algo

TestTransfer = {}

local x, y = peri.tensor({ { 1, 2 }, { -1, 0.5 }, { 0, -2 } }, "f32"), peri.tensor({ 0, 1, 1 }, "i64")

local Net = nn.class("Net", function (self)
  self.lower, self.upper, self.head = nn.Linear(2, 4), nn.Linear(4, 4), nn.Linear(4, 2)
end)
function Net:forward(v) return self.head(self.upper(self.lower(v):tanh()):tanh()) end

local function made(more, build)
  peri.seed(1)
  local net = Net()
  local opt = (build or function (n) return optim.AdamW(n, { lr = 1e-2 }) end)(net)
  local opts = { model = net, optimizer = opt, parts = { "^head", "^upper", "^lower" },
    loss = function () return net(x):cross_entropy(y) end }
  for k, v in pairs(more or {}) do opts[k] = v end
  return net, algo.transfer.new(opts), opt
end

local function snapshot(net)
  local out = {}
  for _, entry in ipairs(net:named_parameters()) do out[entry[1]] = entry[2]:reshape({ -1 }):tolist() end
  return out
end

-- A part is as it was brought, to the bit, until its update comes; what no part matches always is.
function TestTransfer.test_a_part_moves_from_its_update_on()
  for _, parts in ipairs { { "^head", "^upper", "^lower" }, { "^head" }, { "bias$", "^head%.weight" }, { "." } } do
    for _, every in ipairs { 0, 1, 3 } do
      local net, stepper = made { parts = parts, every = every }
      local before = snapshot(net)
      for step = 1, 8 do
        local open = every == 0 and #parts or math.min(#parts, 1 + (step - 1) // every)
        lu.assertEquals(stepper:step().open, open)
        local after = snapshot(net)
        for name in pairs(before) do
          local owner
          for i = #parts, 1, -1 do if name:find(parts[i]) then owner = i end end
          lu.assertEquals(before[name][1] ~= after[name][1], owner ~= nil and owner <= open, name)
        end
        before = after
      end
    end
  end
end

function TestTransfer.test_all_parts_at_once_are_plain_training()
  local net, stepper = made { clip_norm = 1 }
  for _ = 1, 5 do stepper:step() end
  peri.seed(1)
  local plain = Net()
  local opt = optim.AdamW(plain, { lr = 1e-2 })
  for _ = 1, 5 do
    plain(x):cross_entropy(y):backward()
    opt:step({ clip = 1 }):zero_grad()
  end
  lu.assertEquals(snapshot(net), snapshot(plain))
end

function TestTransfer.test_a_state_goes_on_to_the_bit()
  for cut = 1, 6 do
    local net, stepper = made { every = 2 }
    for _ = 1, 7 do stepper:step() end
    local first, early, opt = made { every = 2 }
    for _ = 1, cut do early:step() end
    local again, later, other = made { every = 2 }
    again:load_state_dict(first:state_dict())
    other:load_state_dict(opt:state_dict())
    later:set_state(early:state())
    lu.assertEquals(later.open, math.min(3, 1 + cut // 2))
    for _ = cut + 1, 7 do later:step() end
    lu.assertEquals(snapshot(again), snapshot(net), cut)
  end
end

function TestTransfer.test_closing_gives_back_what_could_learn()
  for _, frozen in ipairs { {}, { "lower.weight" }, { "head.bias", "upper.weight" } } do
    for _, steps in ipairs { 0, 1, 3 } do
      peri.seed(1)
      local net, before = Net(), {}
      for _, entry in ipairs(net:named_parameters()) do
        for _, name in ipairs(frozen) do if entry[1] == name then entry[2]:requires_grad_(false) end end
        before[entry[1]] = entry[2].requires_grad
      end
      local function able()
        local out = {}
        for _, entry in ipairs(net:named_parameters()) do out[entry[1]] = entry[2].requires_grad end
        return out
      end
      local opts = { model = net, optimizer = optim.SGD(net, { lr = 0.1 }), parts = { "^head", "^upper" }, every = 2,
        loss = function () return net(x):cross_entropy(y) end }
      do
        local stepper <close> = algo.transfer.new(opts)
        for _ = 1, steps do stepper:step() end
        lu.assertFalse(able()["lower.bias"])
        stepper:close():step() -- goes on
        lu.assertFalse(able()["lower.bias"])
      end
      lu.assertEquals(able(), before)
    end
  end
end

-- A loss that moves nothing of what learns is no update, whatever it is.
function TestTransfer.test_a_loss_that_reaches_nothing_is_an_error_and_its_step_was_none()
  local other = Net()
  for message, loss in pairs {
    ["no gradient reaches the parameters of optimizer"] = function () return other(x):cross_entropy(y) end,
    ["loss gave a tensor that no gradient goes through"] = function () return peri.zeros {} end,
    ["loss gave nothing, expected a tensor"] = function () end,
    ["loss gave a number, expected a tensor"] = function () return 1.5 end,
    ["loss gave shape (3), expected one number"] = function () return other(x):cross_entropy(y,
      { reduction = "none" }) end,
  } do
    for _, every in ipairs { 0, 1 } do
      local net, stepper = made { loss = loss, every = every }
      local before = snapshot(net)
      lu.assertErrorMsgContains("transfer: " .. message, stepper.step, stepper)
      lu.assertEquals({ stepper.at, stepper.idle, snapshot(net) }, { 0, 0, before })
    end
  end
end

function TestTransfer.test_what_cannot_be_is_refused()
  for _, pattern in ipairs { "[", "(", "%", "head%" } do
    lu.assertErrorMsgContains(("part 2: %q is no Lua pattern"):format(pattern), made, { parts = { "^head", pattern } })
  end
  lu.assertErrorMsgContains('part 2: no parameter that an earlier part has not matches "^head"', made,
    { parts = { ".", "^head" } })
  lu.assertErrorMsgContains("part 1: no parameter", made, { parts = { "^tail" } })
  lu.assertErrorMsgContains("part 1 is a number", made, { parts = { 1 } })
  lu.assertErrorMsgContains("there are no parts", made, { parts = {} })
  lu.assertErrorMsgContains("lower.weight is of part 3 and not the optimizer's", made, nil,
    function (net) return optim.SGD({ net.head, net.upper }, { lr = 1 }) end)
  lu.assertErrorMsgContains('unknown option "evry"', made, { evry = 1 })
end

os.exit(lu.LuaUnit.run())
