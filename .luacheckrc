std = "lua54"
cache = false
max_line_length = 120
self = false
files["lua/meta"] = { ignore = { "1", "2", "6" } } -- generated declarations, never run
files["tests"] = { allow_defined_top = true, ignore = { "131" } } -- LuaUnit finds global Test tables
