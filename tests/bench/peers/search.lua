-- The request that wrk repeats; MESH_TOKEN is sent where there is one.
wrk.method = "POST"
wrk.body = '{"query":"hello world this is a query","limit":10,"options":{"cache":false}}'
wrk.headers["Content-Type"] = "application/json"
local token = os.getenv("MESH_TOKEN")
if token then
  wrk.headers["Authorization"] = "Bearer " .. token
end
