// Grammars: upstream prints what is wrong with one, and reports only that it failed, once
// the model has been loaded.
#include "shim_internal.h"

#include "llama-grammar.h"

#include <cstring>
#include <memory>
#include <stdexcept>

struct free_grammar {
    void operator()(llama_grammar * grammar) const { llama_grammar_free_impl(grammar); }
};

// Throws what is wrong with the rules of `text`, as far as that shows without a vocabulary.
static void check_rules(const std::string & text) {
    llama_grammar_parser parser;
    // The parser skips blanks and comments behind a rule, so one of ours stands in front.
    const std::string rules = "rpaged-first ::= \"\"\n" + text;
    for (const char * at = rules.c_str(); *at;) {
        at = parser.parse_rule(at);
    }
    parser.get_symbol_id("root", 4);
    for (const auto & symbol : parser.symbol_ids) {
        if (symbol.second >= parser.rules.size() || parser.rules[symbol.second].empty()) {
            throw std::runtime_error("there is no rule '" + symbol.first + "'");
        }
    }
    const std::unique_ptr<llama_grammar, free_grammar> grammar(llama_grammar_init_impl(
        nullptr, text.c_str(), "root", false, nullptr, 0, nullptr, 0));
    if (!grammar) {
        throw std::runtime_error("a rule begins with itself (left recursion)");
    }
}

void rpaged_check_grammar(const std::string & text) {
    if (text.empty()) {
        return;
    }
    if (text.compare(0, 11, "%llguidance") == 0) {
        throw std::runtime_error("llama.cpp is built without llguidance here");
    }
    try {
        check_rules(text);
    } catch (const std::exception & error) {
        // Tokens in a grammar are found with the model.
        if (std::strncmp(error.what(), "no vocab ", 9) != 0) {
            throw;
        }
    }
}
