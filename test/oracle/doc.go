// Package oracle mounts a Portolan store in distribution's own handlers and asks
// both the same. [Namespace] implements distribution's interfaces on our store;
// handlers.App serves it through registry middleware; our handlers serve another
// store with the same projects. Statuses, headers and bodies are compared request
// by request. Every difference that is known is explained in differences_test.go.
//
// It is information and no gate: where the two differ, one of them may well be
// right. It is a module of its own, so that what handlers.App drags in stays out
// of the registry's go.mod. Run it with `make oracle`.
//
// What cannot be compared here: who may do what (App has a single access
// controller and no 403), and content of other sites (one store has all).
package oracle
