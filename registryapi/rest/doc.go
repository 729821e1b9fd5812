// Package rest holds the conventions that both management APIs keep, so that
// a client written for one can read the other: how an operation is declared,
// who may call it, what an error looks like, how lists are paged.
//
//   - An operation is typed Go ([Register]); OpenAPI is made from it and served
//     at PREFIX/openapi.json.
//   - Errors have Harbor's form {"errors":[{"code":"NOT_FOUND","message":"…"}]},
//     made by [FromError] from what the control plane and the store say. An
//     error that nobody foresaw is logged and answered as 500 without its text.
//   - Who asks is found once per request, before the input is looked at;
//     [Subject] gives it to the handler. Registry tokens are refused: they are
//     for /v2 alone.
//   - Bodies are read whole, bounded in size and time, before a handler runs: a
//     slow client can hold a connection but never a command, and a command that
//     waits for a leader is not cut by the body's deadline.
//
// An [API] is an http.Handler, safe for concurrent use once all operations are
// registered.
package rest
