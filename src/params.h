/* SPDX-License-Identifier: BSD-2-Clause */
#ifndef TERN_SRC_PARAMS_H
#define TERN_SRC_PARAMS_H

#include <stdint.h>
#include <tern/session.h>

/* param_check - 0, -EINVAL (unknown, or no power of two where one is needed) or -ERANGE. */
int param_check(enum tern_param param, uint64_t value);

#endif
