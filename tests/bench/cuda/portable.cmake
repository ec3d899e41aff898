# Included at project() by the preset `gpu`: links our libraries' static archives, so that quantd_gpu runs
# where nothing is installed. Later find_package calls find the targets made here.
find_package(Threads REQUIRED)
find_package(fmt REQUIRED)
find_package(absl REQUIRED)
find_package(yaml-cpp REQUIRED)

# Debian has no libfmt.a: fmt as headers.
set_property(TARGET fmt::fmt PROPERTY INTERFACE_COMPILE_DEFINITIONS FMT_HEADER_ONLY=1)

get_property(imported DIRECTORY PROPERTY IMPORTED_TARGETS)
foreach(target IN LISTS imported)
  if(NOT target MATCHES "^(absl::|yaml-cpp)")
    continue()
  endif()
  foreach(config NONE RELEASE RELWITHDEBINFO)
    get_target_property(shared ${target} IMPORTED_LOCATION_${config})
    if(NOT shared)
      continue()
    endif()
    string(REGEX REPLACE "\\.so[.0-9]*$" ".a" static "${shared}")
    if(EXISTS ${static})
      set_target_properties(${target} PROPERTIES IMPORTED_LOCATION_${config} ${static} IMPORTED_SONAME_${config} "")
    endif()
  endforeach()
endforeach()
set(QUANTD_PORTABLE ON)
