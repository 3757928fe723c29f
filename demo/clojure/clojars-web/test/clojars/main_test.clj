(ns clojars.main-test
  (:require [clojars.main :as main]
            [clojure.test :refer [deftest is]]))

(deftest what-is-not-said-has-a-default
  (is (= {:host "127.0.0.1", :port 8001, :nailgun-port 8101, :repository "repository", :role "alone"}
         (main/options []))))

(deftest what-is-said-counts
  (is (= {:port 1, :nailgun-port 2, :role "backup", :repository "/x"}
         (select-keys (main/options ["--port" "1" "--nailgun-port" "2" "--role" "backup" "--repository" "/x"])
                      [:port :nailgun-port :role :repository]))))

(deftest what-nobody-knows-is-refused
  (doseq [words [["--prot" "1"] ["port" "1"] ["--port"]]]
    (is (thrown-with-msg? clojure.lang.ExceptionInfo #"cannot start: what is" (main/options words)))))

(deftest a-port-is-a-number
  (doseq [text ["x" "0" "65536" ""]]
    (is (thrown-with-msg? clojure.lang.ExceptionInfo #"is not a port" (main/options ["--port" text])))))
