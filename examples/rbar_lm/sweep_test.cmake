# cmake -DPROGRAM= -DTEXT= -DFOLDER= -P sweep_test.cmake: a sweep is the same whether it runs at once or side by side, in
# one go or killed again and again, and it refuses to compare what cannot be compared.
cmake_minimum_required(VERSION 3.21)
file(REMOVE_RECURSE ${FOLDER})
file(MAKE_DIRECTORY ${FOLDER})

# Fails unless the program ends with CODE and its output matches PATTERN.
function(expect CODE PATTERN)
  execute_process(COMMAND ${PROGRAM} ${ARGN} RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE output)
  if(NOT result EQUAL CODE OR NOT output MATCHES "${PATTERN}")
    message(FATAL_ERROR "${ARGN}\n--- expected exit code ${CODE} and '${PATTERN}', got ${result}\n${output}")
  endif()
endfunction()

function(write_plan NAME STEPS BASELINE)
  set(tiny "{\"d_model\": 16, \"n_layers\": 1, \"n_heads\": 2}")
  file(WRITE ${FOLDER}/${NAME} "{\"text\": \"${TEXT}\", \"seeds\": [1, 2],
    \"train\": {\"steps\": ${STEPS}, \"batch\": 2, \"context\": 16, \"warmup\": 2, \"save_every\": 3},
    \"runs\": [{\"name\": \"torus\", \"model\": \"kuramoto\", \"config\": ${tiny}, \"train\": {\"lr\": [1e-3, 1e-2]}},
               {\"name\": \"baseline\", \"model\": \"standard\", \"config\": ${tiny}, \"train\": {${BASELINE}}}]}")
endfunction()

# results.csv without its tokens/s, and the bits of every model.
function(read_results VARIABLE OUT)
  file(READ ${FOLDER}/${OUT}/results.csv results)
  string(REGEX REPLACE ",[0-9]+,([0-9a-f]+),\n" ",\\1\n" results "${results}")
  file(GLOB models RELATIVE ${FOLDER}/${OUT} ${FOLDER}/${OUT}/runs/*/model.safetensors)
  foreach(model IN LISTS models)
    file(SHA256 ${FOLDER}/${OUT}/${model} bits)
    string(APPEND results "${model} ${bits}\n")
  endforeach()
  set(${VARIABLE} "${results}" PARENT_SCOPE)
endfunction()

set(steps 100)
write_plan(plan.json ${steps} "")
expect(0 "baseline +[0-9]+ +0.001 +2 .* best" sweep ${FOLDER}/plan.json --out ${FOLDER}/whole --jobs 1)
read_results(whole whole)
string(REGEX MATCHALL "model.safetensors [0-9a-f]+" models "${whole}")
list(LENGTH models count)
if(NOT count EQUAL 6)
  message(FATAL_ERROR "six models expected:\n${whole}")
endif()
foreach(table IN ITEMS summary.csv curves.csv curves.svg lr.svg)
  if(NOT EXISTS ${FOLDER}/whole/${table})
    message(FATAL_ERROR "no ${table}")
  endif()
endforeach()

# Windows in the same order for all runs of a seed, in another for another seed.
file(STRINGS ${FOLDER}/whole/results.csv lines REGEX "^(torus|baseline)")
foreach(line IN LISTS lines)
  string(REGEX MATCH "^[a-z]+,([12]),.*,([0-9a-f]+),$" matched "${line}")
  list(APPEND digests_${CMAKE_MATCH_1} "${CMAKE_MATCH_2}")
endforeach()
list(REMOVE_DUPLICATES digests_1)
list(REMOVE_DUPLICATES digests_2)
list(LENGTH digests_1 count)
if(NOT count EQUAL 1 OR digests_1 STREQUAL digests_2)
  message(FATAL_ERROR "orders of the data: ${digests_1} and ${digests_2}")
endif()

# The same bits side by side ...
expect(0 "best" sweep ${FOLDER}/plan.json --out ${FOLDER}/parallel --jobs 3 --quiet)
read_results(parallel parallel)
if(NOT parallel STREQUAL whole)
  message(FATAL_ERROR "--jobs 3 gives other results:\n${parallel}\ninstead of\n${whole}")
endif()
# ... and after being killed, wherever that was. Every step stands in the log once.
foreach(seconds IN ITEMS 0.05 0.1 0.15 0.2 0.3)
  execute_process(COMMAND ${PROGRAM} sweep ${FOLDER}/plan.json --out ${FOLDER}/killed --jobs 2 TIMEOUT ${seconds}
                  OUTPUT_QUIET ERROR_QUIET)
endforeach()
expect(0 "best" sweep ${FOLDER}/plan.json --out ${FOLDER}/killed --jobs 2)
read_results(killed killed)
if(NOT killed STREQUAL whole)
  message(FATAL_ERROR "killed and started again gives other results:\n${killed}\ninstead of\n${whole}")
endif()
file(GLOB logs ${FOLDER}/killed/runs/*/log.csv)
foreach(log IN LISTS logs)
  file(STRINGS ${log} lines REGEX "^[0-9]+,")
  list(LENGTH lines count)
  if(NOT count EQUAL steps)
    message(FATAL_ERROR "${log} has ${count} steps")
  endif()
endforeach()

# A run whose training was done is not trained again: its log, which has times in it, stays to the byte.
set(run ${FOLDER}/killed/runs/torus-lr0.001-seed1)
file(SHA256 ${run}/log.csv log)
file(REMOVE ${run}/result.json)
expect(0 "6 runs, 5 of them finished before" sweep ${FOLDER}/plan.json --out ${FOLDER}/killed)
file(SHA256 ${run}/log.csv again)
read_results(resumed killed)
if(NOT log STREQUAL again OR NOT resumed STREQUAL whole)
  message(FATAL_ERROR "a finished training was not taken up as it was:\n${resumed}")
endif()

# Tables alone, also of a part of the runs.
file(REMOVE ${FOLDER}/whole/results.csv)
expect(0 "best" sweep ${FOLDER}/plan.json --out ${FOLDER}/whole --report)
read_results(reported whole)
if(NOT reported STREQUAL whole)
  message(FATAL_ERROR "--report gives other results:\n${reported}")
endif()
file(REMOVE_RECURSE ${FOLDER}/killed/runs/baseline-lr0.001-seed2)
expect(0 "baseline +[0-9]+ +0.001 +1 " sweep ${FOLDER}/plan.json --out ${FOLDER}/killed --report)
expect(2 "a folder with runs of the plan" sweep ${FOLDER}/plan.json --out ${FOLDER}/nothing --report)

# Some of the runs, on a part of the validation text; none that another process trains.
write_plan(some.json 10 "")
expect(0 "2 runs, 0 of them finished before" sweep ${FOLDER}/some.json --out ${FOLDER}/some --only
       torus-lr0.001-seed2,baseline-lr0.001-seed1)
expect(2 "--only: expected runs of the plan, by name or folder, got nobody" sweep ${FOLDER}/some.json --out
       ${FOLDER}/some --only nobody)
find_program(FLOCK flock)
if(FLOCK)
  set(run ${FOLDER}/some/runs/torus-lr0.001-seed2)
  file(REMOVE ${run}/result.json)
  execute_process(COMMAND ${FLOCK} ${run}/lock ${PROGRAM} sweep ${FOLDER}/some.json --out ${FOLDER}/some --only torus
                  ERROR_VARIABLE output OUTPUT_QUIET RESULT_VARIABLE result)
  if(NOT result EQUAL 0 OR NOT output MATCHES "torus-lr0.001-seed2: another process trains it" OR EXISTS
                                                                                           ${run}/result.json)
    message(FATAL_ERROR "trains what another process trains:\n${output}")
  endif()
endif()
write_plan(part.json 10 "\"batch\": 2}}, {\"name\": \"part\", \"model\": \"standard\", \"config\": {\"d_model\": 16}, \"train\": {\"validate_tokens\": 40")
expect(2 "data of part, seed 1: expected the windows of torus" sweep ${FOLDER}/part.json --out ${FOLDER}/part)

# What changed since, what differs in its data, what diverges.
write_plan(changed.json ${steps} "\"clip\": 0.5")
expect(2 "/train/clip 0.5 .as here., got /train/clip 1.*--allow-changes" sweep ${FOLDER}/changed.json --out
       ${FOLDER}/whole)
expect(0 "6 runs, 4 of them finished before" sweep ${FOLDER}/changed.json --out ${FOLDER}/whole --allow-changes)
write_plan(batch.json 10 "\"batch\": 4")
expect(2 "data of baseline, seed 1: expected the windows of torus" sweep ${FOLDER}/batch.json --out ${FOLDER}/batch)
write_plan(split.json 10 "\"batch\": 1, \"accumulation\": 2")
expect(0 "best" sweep ${FOLDER}/split.json --out ${FOLDER}/split)
write_plan(wild.json 10 "\"lr\": [1e-3, 1e9]")
expect(1 "baseline.* 2 failed" sweep ${FOLDER}/wild.json --out ${FOLDER}/wild --jobs 2)
file(STRINGS ${FOLDER}/wild/results.csv lines REGEX "^baseline,1,.*,1e[+]09,.*,nan,nan,nan,.*a finite number")
list(LENGTH lines count)
if(NOT count EQUAL 1)
  message(FATAL_ERROR "results.csv does not tell of the failure")
endif()
