// Package tidy has tests about the source itself: who may import whom, how long
// things are, what is named and commented, and whether the documents are true.
// It holds no code of nestdbg. Each checker is a function from a file's text to
// problems, and beside it stands a test that shows it firing.
package tidy
