(ns clojars.log
  "Lines for the log, which is standard output."
  (:require [clojure.string :as str]))

(defn say
  "One line of these words, in one piece whoever else says something at the same time."
  [& words]
  (print (str (str/join " " words) "\n"))
  (flush))
